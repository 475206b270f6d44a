// The Generation service: each call is a reactor of its own (generate_call.h, score_call.h).
#include "quire/v1/generation.grpc.pb.h"
#include "rpc/front.h"
#include "rpc/generate_call.h"
#include "rpc/score_call.h"

namespace quire::rpc {
namespace {

class GenerationService : public v1::Generation::CallbackService {
 public:
  explicit GenerationService(Front* front) : front_(front) {}

  grpc::ServerUnaryReactor* Generate(grpc::CallbackServerContext* context, const v1::GenerateRequest* request,
                                     v1::GenerateResponse* response) override {
    return WholeCall::Generate(front_, context, request, response);
  }
  grpc::ServerWriteReactor<v1::GenerateChunk>* GenerateStream(grpc::CallbackServerContext* context,
                                                              const v1::GenerateRequest* request) override {
    return StreamCall::Generate(front_, context, request);
  }
  grpc::ServerWriteReactor<v1::GenerateChunk>* Resume(grpc::CallbackServerContext* context,
                                                      const v1::ResumeRequest* request) override {
    return StreamCall::Resume(front_, context, request);
  }
  grpc::ServerBidiReactor<v1::ScoreRequest, v1::ScoreResponse>* Score(grpc::CallbackServerContext* context) override {
    return ScoreCall::Make(front_, context);
  }

 private:
  Front* const front_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeGenerationService(Front* front) {
  return std::make_unique<GenerationService>(front);
}

}  // namespace quire::rpc
