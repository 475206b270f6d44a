#include "rpc/coordinator/agreement.h"

#include <gtest/gtest.h>

#include <functional>
#include <utility>

namespace quire::rpc {
namespace {

v1::Identity Identity() {
  v1::Identity identity;
  identity.set_group("g");
  identity.set_model("m");
  identity.set_model_hash("aa");
  identity.set_tokenizer_hash("bb");
  identity.set_dtype("float32");
  identity.set_kv_cache_dtype("float32");
  identity.set_max_model_len(512);
  identity.set_tensor_parallel_size(1);
  identity.set_batch_invariant(true);
  identity.set_page_size(16);
  identity.set_device("cpu");
  identity.set_version("1+abc");
  identity.add_attention("dense");
  return identity;
}

TEST(Agreement, EqualGroupsAgree) {
  EXPECT_TRUE(CheckAgreement(Identity(), Identity()).ok());
  EXPECT_EQ(TakeoverWarning(Identity(), Identity()), "");
}

TEST(Agreement, WhateverChangesTokensIsRefusedByName) {
  const std::pair<const char*, std::function<void(v1::Identity*)>> changes[] = {
      {"model name", [](v1::Identity* i) { i->set_model("n"); }},
      {"model hash", [](v1::Identity* i) { i->set_model_hash("ab"); }},
      {"tokenizer hash", [](v1::Identity* i) { i->set_tokenizer_hash("ab"); }},
      {"has dtype", [](v1::Identity* i) { i->set_dtype("bfloat16"); }},
      {"cache dtype", [](v1::Identity* i) { i->set_kv_cache_dtype("bfloat16"); }},
      {"attention", [](v1::Identity* i) { i->add_attention("quest:token_budget=64"); }},
      {"page size", [](v1::Identity* i) { i->set_page_size(32); }},
      {"--max-model-len", [](v1::Identity* i) { i->set_max_model_len(256); }},
  };
  for (const auto& [what, change] : changes) {
    v1::Identity other = Identity();
    change(&other);
    const Status status = CheckAgreement(Identity(), other);
    EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition) << what;
    EXPECT_NE(status.message().find(what), std::string::npos) << status.message();
  }
}

TEST(Agreement, ALargerContextIsWelcome) {
  v1::Identity other = Identity();
  other.set_max_model_len(1024);
  EXPECT_TRUE(CheckAgreement(Identity(), other).ok());
}

TEST(Agreement, RoundingIsWarnedOf) {
  v1::Identity other = Identity();
  other.set_batch_invariant(false);
  EXPECT_NE(TakeoverWarning(Identity(), other), "");
  other = Identity();
  other.set_tensor_parallel_size(2);
  EXPECT_NE(TakeoverWarning(Identity(), other), "");
  other = Identity();
  other.set_device("cuda");
  EXPECT_NE(TakeoverWarning(Identity(), other).find("runs on cuda, others on cpu"), std::string::npos);
  other = Identity();
  other.set_version("1+abd");  // another build
  EXPECT_NE(TakeoverWarning(Identity(), other).find("1+abd"), std::string::npos);
}

}  // namespace
}  // namespace quire::rpc
