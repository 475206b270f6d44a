// Progress on stderr of anything that takes longer than two seconds: silent until then, at most a line a second after
// it (rewritten in place on a terminal, every five seconds otherwise).
#pragma once

#include <string>

namespace quire::launch {

class Progress {
 public:
  explicit Progress(std::string what);
  ~Progress();  // ends the line that a terminal shows

  // fraction in [0, 1]; detail, when not empty, is shown beside it.
  void Update(double fraction, const std::string& detail = {});
  // Another stage of the same thing.
  void SetWhat(std::string what);
  // Ends the line now: other text follows.
  void Finish();

 private:
  std::string what_;
  double start_ = 0, last_ = 0;
  bool terminal_ = false;
  bool shown_ = false;  // a line without its newline stands on the terminal
};

}  // namespace quire::launch
