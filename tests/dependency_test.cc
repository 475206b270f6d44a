// Who may include whom: reads every #include of the tree and holds it against tests/dependency_table.txt, and the
// top-level folders against the project's list, and what is called of kernels/cuda against its absence. It proves on small made-up trees that it can fail.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace quire {
namespace {

namespace fs = std::filesystem;

struct Table {
  std::map<std::string, std::set<std::string>> layers;   // layer → layers it may include
  std::map<std::string, std::set<std::string>> outside;  // "<mpi.h" → layers that may include it
};

Table ReadTable(const fs::path& path) {
  Table table;
  std::ifstream in(path);
  std::string line;
  while (std::getline(in, line)) {
    const size_t colon = line.find(':');
    if (line.empty() || line[0] == '#' || colon == std::string::npos) continue;
    std::string key = line.substr(0, colon);
    if (key.back() == '>') key.pop_back();
    std::istringstream words(line.substr(colon + 1));
    std::set<std::string> allowed{std::istream_iterator<std::string>(words), {}};
    (key[0] == '<' ? table.outside : table.layers)[key] = allowed;
  }
  return table;
}

// The longest layer name that `path` lies under; "" when none.
std::string LayerOf(const Table& table, const std::string& path) {
  std::string best;
  for (const auto& [layer, allowed] : table.layers) {
    if (path.rfind(layer + "/", 0) == 0 && layer.size() > best.size()) best = layer;
  }
  return best;
}

bool IsSource(const fs::path& path) {
  static const std::set<std::string> kExtensions = {".h", ".hpp", ".cc", ".cpp", ".cu", ".cuh", ".inc", ".inl"};
  return kExtensions.count(path.extension().string()) > 0;
}

// Every forbidden edge of the tree under `root`, one sentence each.
std::vector<std::string> Violations(const Table& table, const fs::path& root) {
  static const std::regex kInclude(R"re(^\s*#\s*include\s*([<"])([^">]+)[">])re");
  std::set<std::string> top_levels;
  for (const auto& [layer, allowed] : table.layers) top_levels.insert(layer.substr(0, layer.find('/')));
  std::vector<std::string> found;
  for (const std::string& top : top_levels) {
    if (!fs::exists(root / top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      if (!entry.is_regular_file() || !IsSource(entry.path())) continue;
      const std::string file = fs::relative(entry.path(), root).generic_string();
      // Programs built outside the tree against the installed package include as their authors like.
      if (file.rfind("tests/install/consumer/", 0) == 0 || file.rfind("launch/examples/", 0) == 0) continue;
      const std::string from = LayerOf(table, file);
      if (from.empty()) {
        found.push_back(file + " lies in no layer of the table");
        continue;
      }
      std::ifstream in(entry.path());
      std::string line;
      for (int number = 1; std::getline(in, line); ++number) {
        std::smatch match;
        if (!std::regex_search(line, match, kInclude)) continue;
        const std::string include = match[2];
        const std::string where = file + ":" + std::to_string(number) + ": ";
        for (const auto& [prefix, allowed] : table.outside) {
          if (("<" + include).rfind(prefix, 0) == 0 && allowed.count(from) == 0) {
            found.push_back(where + from + " may not include " + include);
          }
        }
        const std::string to = LayerOf(table, include);
        if (to.empty()) {
          const bool ours = top_levels.count(include.substr(0, include.find('/'))) > 0 ||
                            include.find("..") != std::string::npos || fs::exists(entry.path().parent_path() / include);
          if (ours) found.push_back(where + "include " + include + " by its path in the repository");
        } else if (to != from && table.layers.at(from).count(to) == 0) {
          found.push_back(where + from + " may not include " + to + " (" + include + ")");
        }
      }
    }
  }
  return found;
}

std::string Join(const std::vector<std::string>& lines) {
  std::string all;
  for (const std::string& line : lines) all += line + "\n";
  return all;
}

class DependencyOnMadeUpTree : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            (std::string("quire_") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void Write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::vector<std::string> Check() { return Violations(table_, root_); }
  fs::path root_;
  Table table_ = ReadTable(fs::path(QUIRE_SOURCE_DIR) / "tests/dependency_table.txt");
};

TEST(Dependency, TheTreeHasNoForbiddenEdge) {
  const fs::path root = QUIRE_SOURCE_DIR;
  const Table table = ReadTable(root / "tests/dependency_table.txt");
  ASSERT_GE(table.layers.size(), 10u);
  ASSERT_GE(table.outside.size(), 4u);
  const std::vector<std::string> found = Violations(table, root);
  EXPECT_TRUE(found.empty()) << Join(found);
}

TEST(Dependency, TopLevelFoldersAreThoseOfTheDesign) {
  // Folders of the project; cmake/ and dot folders are tool files, build/ is what compiling leaves.
  const std::set<std::string> allowed = {"core",   "parallel", "kernels", "kvstore", "rpc",
                                         "launch", "tests",    "cmake",   "build"};
  for (const auto& entry : fs::directory_iterator(QUIRE_SOURCE_DIR)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_directory() || name[0] == '.') continue;
    EXPECT_TRUE(allowed.count(name)) << name << " is no folder of the design";
  }
}

// A build without CUDA links them: kernels/cuda is called in every build, and cuda_absent.cc stands in for it.
TEST(Dependency, EveryCudaFunctionThatIsCalledHasItsAbsence) {
  const fs::path kernels = fs::path(QUIRE_SOURCE_DIR) / "kernels", absence = kernels / "dispatch/cuda_absent.cc";
  const auto read = [](const fs::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  };
  const std::string absent = read(absence);
  static const std::regex kCall(R"re(\bcuda::([A-Z]\w*)\()re");
  std::set<std::string> called;
  for (const auto& entry : fs::recursive_directory_iterator(kernels)) {
    const std::string file = fs::relative(entry.path(), kernels).generic_string();
    if (!entry.is_regular_file() || !IsSource(entry.path()) || file.rfind("cuda/", 0) == 0) continue;
    const std::string text = read(entry.path());
    for (std::sregex_iterator call(text.begin(), text.end(), kCall), end; call != end; ++call) called.insert((*call)[1]);
  }
  EXPECT_GT(called.size(), 30u);
  for (const std::string& name : called) {
    EXPECT_TRUE(absent.find(" " + name + "(") != std::string::npos) << name << " is missing in " << absence;
  }
}

TEST_F(DependencyOnMadeUpTree, AnAllowedEdgePasses) {
  Write("kernels/a.h", "#include \"core/base/status.h\"\n#include <vector>\n#include \"hwy/highway.h\"\n");
  EXPECT_EQ(Join(Check()), "");
}

TEST_F(DependencyOnMadeUpTree, AModelThatIncludesTheCacheIsFound) {
  Write("core/model/decoder.cc", "// text\n  #  include \"kvstore/page_pool.h\"\n");
  EXPECT_EQ(Join(Check()), "core/model/decoder.cc:2: core/model may not include kvstore (kvstore/page_pool.h)\n");
}

TEST_F(DependencyOnMadeUpTree, AngleBracketsDoNotHideAnEdge) {
  Write("kernels/cpu/a.cc", "#include <core/engine/engine.h>\n");
  EXPECT_EQ(Check().size(), 1u);
}

TEST_F(DependencyOnMadeUpTree, MpiOutsideParallelIsFound) {
  Write("parallel/mpi.cc", "#include <mpi.h>\n");
  Write("core/engine/a.cc", "#include <mpi.h>\n");
  Write("launch/b.cc", "#include <grpcpp/grpcpp.h>\n");
  const std::string found = Join(Check());
  EXPECT_EQ(
      found,
      "core/engine/a.cc:1: core/engine may not include mpi.h\nlaunch/b.cc:1: launch may not include grpcpp/grpcpp.h\n");
}

TEST_F(DependencyOnMadeUpTree, NothingIncludesTests) {
  Write("launch/a.cc", "#include \"tests/data.h\"\n");
  EXPECT_EQ(Check().size(), 1u);
}

TEST_F(DependencyOnMadeUpTree, APathRelativeToTheFileIsFound) {
  Write("kernels/cpu/a.cc", "#include \"b.h\"\n#include \"../linear.h\"\n");
  Write("kernels/cpu/b.h", "");
  EXPECT_EQ(Check().size(), 2u);
}

}  // namespace
}  // namespace quire
