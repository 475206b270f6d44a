// gRPC's queue of callbacks, where a build of it has one for the whole process: made for its first user, and taken down
// with the last one, when a thread of gRPC's may let go of it twice ("ref_counted.h: assertion failed: prior > 0"; seen
// once in hundreds of runs). Programs do that once, tests with a service each again and again: so a server that nobody
// asks and nobody ends keeps it for them.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "quire/v1/generation.grpc.pb.h"

namespace quire {
namespace {

class KeptCallbackQueue : public testing::Environment {
 public:
  void SetUp() override {
    static v1::Generation::CallbackService* const service = new v1::Generation::CallbackService;
    static const grpc::Server* const server = [] {
      grpc::ServerBuilder builder;
      builder.RegisterService(service);
      return builder.BuildAndStart().release();
    }();
    EXPECT_NE(server, nullptr);
  }
};

[[maybe_unused]] const testing::Environment* const kept = testing::AddGlobalTestEnvironment(new KeptCallbackQueue);

}  // namespace
}  // namespace quire
