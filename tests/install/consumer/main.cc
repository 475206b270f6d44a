// The README's library example, as a program of its own against the installed package.
#include <quire/core/engine/engine.h>

#include <cstdio>
#include <iostream>

int main(int argc, char** argv) {
  quire::EngineOptions options;
  options.model = argc > 1 ? argv[1] : "";
  options.attention = {*quire::AttentionSpec::Parse("quest:token_budget=512")};
  auto engine = quire::Engine::Create(options);
  if (!engine.ok()) return std::fprintf(stderr, "%s\n", engine.status().ToString().c_str()), 1;
  quire::GenerationRequest request;
  request.prompt = *(*engine)->tokenizer()->Encode("Once upon a time", {});
  request.sampling.temperature = 0;
  request.stopping.max_tokens = 40;
  auto id = (*engine)->Submit(request, [](const quire::TokenEvent& event) { std::cout << event.text << std::flush; });
  return id.ok() && (*engine)->Run().ok() ? 0 : 1;
}
