// The program quire: everything is in program.h, so that tests can run it in pieces.
#include "launch/program.h"

int main(int argc, char** argv) { return quire::launch::RunProgram(argc, argv); }
