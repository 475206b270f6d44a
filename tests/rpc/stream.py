"""Streams an answer from a service with nothing but grpcio and the code made from rpc/proto.

usage: stream.py HOST:PORT PROMPT [MAX_TOKENS]
The folder with the generated quire/v1/*_pb2*.py must be on PYTHONPATH, or be the current one.
"""
import os
import sys

import grpc

sys.path.insert(0, os.getcwd())
from quire.v1 import common_pb2, generation_pb2, generation_pb2_grpc  # noqa: E402


def main():
    address, prompt = sys.argv[1], sys.argv[2]
    request = generation_pb2.GenerateRequest(
        prompts=[common_pb2.Prompt(text=prompt)],
        sampling=common_pb2.Sampling(temperature=0),
        stopping=common_pb2.Stopping(max_tokens=int(sys.argv[3]) if len(sys.argv) > 3 else 40),
    )
    with grpc.insecure_channel(address) as channel:
        for chunk in generation_pb2_grpc.GenerationStub(channel).GenerateStream(request, timeout=60):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
