// Hashes that tell models apart, and tokenizers sent as files.
#include "rpc/identity.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "rpc/tokenizer_files.h"
#include "tests/launch/program.h"

namespace quire::rpc {
namespace {

namespace fs = std::filesystem;

TEST(Identity, TheSameModelInAnotherFolderIsTheSameAndAChangedWeightIsNot) {
  const ScratchFolder scratch;
  const std::string copy = scratch.Path("copy");
  fs::copy(DataPath("stories260K"), copy, fs::copy_options::recursive);
  const auto own = ModelHash(DataPath("stories260K"), "");
  ASSERT_TRUE(own.ok()) << own.status().ToString();
  EXPECT_EQ(own->size(), 32u);
  EXPECT_EQ(*ModelHash(copy, ""), *own);
  EXPECT_NE(*ModelHash(copy, "dummy 1"), *own);
  EXPECT_NE(*ModelHash(DataPath("retriever-2m"), ""), *own);
  for (const auto& entry : fs::directory_iterator(copy)) {
    if (entry.path().extension() != ".safetensors") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(entry.path()) / 2));
    file.put('\x55');
  }
  EXPECT_NE(*ModelHash(copy, ""), *own);
  EXPECT_EQ(ModelHash(scratch.Path("nothing"), "").status().code(), StatusCode::kNotFound);
}

TEST(Identity, TokenizersAreTheSameWhenTheirFilesAreAndOthersDiffer) {
  for (const char* name : {"stories260K", "retriever-2m"}) {
    const auto files = ReadTokenizerFiles(DataPath(name));
    ASSERT_TRUE(files.ok()) << files.status().ToString();
    const auto made = MakeTokenizer(*files);
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    EXPECT_EQ(TokenizerHash(**made), TokenizerHash(**LoadTokenizer(DataPath(name))));
  }
  EXPECT_NE(TokenizerHash(**LoadTokenizer(DataPath("stories260K"))),
            TokenizerHash(**LoadTokenizer(DataPath("retriever-2m"))));
}

TEST(Identity, FileNamesWithFoldersAreRefused) {
  for (const char* name : {"../x", "a/b", "", ".", "/etc/x"}) {
    EXPECT_EQ(MakeTokenizer({{name, "{}"}}).status().code(), StatusCode::kInvalidArgument) << name;
  }
}

TEST(SmolLM2Identity, AGgufsVocabularyTravelsWithoutItsTensors) {
  const std::string model = ModelPath();
  if (model.empty()) GTEST_SKIP() << "SmolLM2 is not in the cache folder";
  const auto files = ReadTokenizerFiles(model);
  ASSERT_TRUE(files.ok()) << files.status().ToString();
  ASSERT_EQ(files->size(), 1u);
  EXPECT_LT(files->front().data.size(), size_t{8} << 20);
  const auto made = MakeTokenizer(*files);
  ASSERT_TRUE(made.ok()) << made.status().ToString();
  const auto own = *LoadTokenizer(model);
  EXPECT_EQ(TokenizerHash(**made), TokenizerHash(*own));
  const std::string text = "Ein Buch, 2 Rieß <|im_end|> 漢字 and so on";
  EXPECT_EQ(*(*made)->Encode(text, {}), *own->Encode(text, {}));
}

// SentencePiece's library has a protobuf inside that must not meet ours: both are in this program.
TEST(Identity, ASentencePieceModelLoadsBesideProtobuf) {
  const char* root = std::getenv("QUIRE_SHARED_DATA");
  const fs::path shared = root != nullptr ? root : QUIRE_SOURCE_DIR "/../shared/data";
  if (!fs::exists(shared)) GTEST_SKIP() << shared << " is not there; QUIRE_SHARED_DATA names a folder with a SentencePiece model";
  std::string found;
  for (const auto& entry : fs::recursive_directory_iterator(shared)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("tokenizer.model")) found = entry.path().string();
  }
  if (found.empty()) GTEST_SKIP() << "no tokenizer.model under " << shared;
  const ScratchFolder scratch;
  fs::copy_file(found, scratch.Path("tokenizer.model"));
  const auto tokenizer = LoadTokenizer(scratch.Path("tokenizer.model"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  const auto ids = (*tokenizer)->Encode("Once upon a time", {});
  ASSERT_TRUE(ids.ok());
  EXPECT_EQ((*tokenizer)->Decode(*ids, true), "Once upon a time");
}

}  // namespace
}  // namespace quire::rpc
