// How an answer is scored against the right ones, as LongBench (arXiv 2308.14508) does: F1 over words, ROUGE-L, exact
// match, classification. Pure functions; scores in [0, 1], of several right answers the best counts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace quire::launch {

// Lower case, without ASCII punctuation and the articles a, an, the; words.
std::vector<std::string> NormalizedWords(std::string_view text);

// Harmonic mean of precision and recall over the normalized words, each counted as often as it occurs (SQuAD's F1).
double TokenF1(std::string_view prediction, const std::vector<std::string>& answers);
// The same of the longest common subsequence of the words as they stand (ROUGE-L, Lin 2004, beta 1).
double RougeL(std::string_view prediction, const std::vector<std::string>& answers);
// 1 where the normalized words are the same.
double ExactMatch(std::string_view prediction, const std::vector<std::string>& answers);
// 1 over the number of classes that the prediction names, where the right one is among them. A class that is only part of
// the right one's name doesn't count.
double Classification(std::string_view prediction, const std::vector<std::string>& answers,
                      const std::vector<std::string>& classes);

}  // namespace quire::launch
