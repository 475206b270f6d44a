// See task_metrics.h.
#include "launch/task_metrics.h"

#include <algorithm>
#include <cctype>
#include <map>

namespace quire::launch {
namespace {

std::vector<std::string> Words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto end = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (const char c : text) {
    if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      end();
    } else {
      word += c;
    }
  }
  end();
  return words;
}

double F1(double common, size_t predicted, size_t wanted) {
  if (common == 0) return 0;
  const double precision = common / static_cast<double>(predicted), recall = common / static_cast<double>(wanted);
  return 2 * precision * recall / (precision + recall);
}

double LongestCommonSubsequence(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<int> row(b.size() + 1);
  for (const std::string& word : a) {
    int diagonal = 0;
    for (size_t j = 1; j <= b.size(); ++j) {
      const int above = row[j];
      row[j] = word == b[j - 1] ? diagonal + 1 : std::max(row[j], row[j - 1]);
      diagonal = above;
    }
  }
  return row.back();
}

template <typename F>
double Best(const std::vector<std::string>& answers, F&& score) {
  double best = 0;
  for (const std::string& answer : answers) best = std::max(best, score(answer));
  return best;
}

}  // namespace

std::vector<std::string> NormalizedWords(std::string_view text) {
  std::string plain;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 128 && std::ispunct(byte) != 0) continue;
    plain += byte < 128 ? static_cast<char>(std::tolower(byte)) : c;
  }
  std::vector<std::string> words = Words(plain);
  std::erase_if(words, [](const std::string& word) { return word == "a" || word == "an" || word == "the"; });
  return words;
}

double TokenF1(std::string_view prediction, const std::vector<std::string>& answers) {
  const std::vector<std::string> predicted = NormalizedWords(prediction);
  return Best(answers, [&](const std::string& answer) {
    const std::vector<std::string> wanted = NormalizedWords(answer);
    std::map<std::string_view, int> left;
    for (const std::string& word : wanted) ++left[word];
    double common = 0;
    for (const std::string& word : predicted) {
      if (const auto at = left.find(word); at != left.end() && at->second-- > 0) ++common;
    }
    return F1(common, predicted.size(), wanted.size());
  });
}

double RougeL(std::string_view prediction, const std::vector<std::string>& answers) {
  const std::vector<std::string> predicted = Words(prediction);
  return Best(answers, [&](const std::string& answer) {
    const std::vector<std::string> wanted = Words(answer);
    return F1(LongestCommonSubsequence(predicted, wanted), predicted.size(), wanted.size());
  });
}

double ExactMatch(std::string_view prediction, const std::vector<std::string>& answers) {
  const std::vector<std::string> predicted = NormalizedWords(prediction);
  return Best(answers, [&](const std::string& answer) { return predicted == NormalizedWords(answer) ? 1.0 : 0.0; });
}

double Classification(std::string_view prediction, const std::vector<std::string>& answers,
                      const std::vector<std::string>& classes) {
  return Best(answers, [&](const std::string& answer) {
    int named = 0;
    bool right = false;
    for (const std::string& name : classes) {
      if (prediction.find(name) == std::string_view::npos) continue;
      right = right || name == answer;
      if (name == answer || answer.find(name) == std::string::npos) ++named;
    }
    return right ? 1.0 / named : 0.0;
  });
}

}  // namespace quire::launch
