#!/usr/bin/env python3
"""Others' client against the running service: tritonclient[http], as KServe and Triton users have it.

    python3 tests/clients/triton.py http://127.0.0.1:PORT PICTURE [EXPECTED-CLASS-INDEX]

Metadata, readiness, encoded images and raw tensors, in JSON and in binary, the classification extension, and its errors. Needs
tritonclient[http], which brings numpy. Exit code 0 if all is well.
"""

import json
import pathlib
import sys
import urllib.request

import numpy
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

MODEL = "resnet50"


def check(what, holds, found=""):
    if not holds:
        sys.exit(f"triton: {what}; found: {found!r}")
    print(f"  ok  {what}", flush=True)


def probabilities_by_v1(base, picture):
    """All probabilities by class, by /v1/classify's word."""
    request = urllib.request.Request(f"{base}/v1/classify?top_k=1000", picture, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        predictions = json.load(answer)["results"][0]["predictions"]
    probabilities = numpy.zeros(len(predictions), numpy.float32)
    for prediction in predictions:
        probabilities[prediction["index"]] = prediction["probability"]
    return probabilities


def encoded(pictures, binary):
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    if binary:
        tensor.set_data_from_numpy(numpy.array(pictures, dtype=object), binary_data=True)
        return tensor
    import base64
    texts = [base64.b64encode(picture) for picture in pictures]
    tensor.set_data_from_numpy(numpy.array(texts, dtype=object), binary_data=False)
    return tensor


def main():
    base, picture = sys.argv[1], pathlib.Path(sys.argv[2]).read_bytes()
    client = triton.InferenceServerClient(base.removeprefix("http://"))
    check("it lives and is ready", client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL))
    check("version 1 is ready", client.is_model_ready(MODEL, "1"))
    server = client.get_server_metadata()
    check("the server names the extensions", "binary_tensor_data" in server["extensions"], server)
    metadata = client.get_model_metadata(MODEL)
    check("the model has the inputs input and image", [t["name"] for t in metadata["inputs"]] == ["input", "image"], metadata)

    expected = probabilities_by_v1(base, picture)
    best = int(expected.argmax())
    if len(sys.argv) > 3:
        check(f"the picture is class {sys.argv[3]}", best == int(sys.argv[3]), best)
    for binary_in in (True, False):
        for binary_out in (True, False):
            outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "logits", "features")]
            answer = client.infer(MODEL, [encoded([picture, picture], binary_in)], outputs=outputs, request_id="one")
            found = answer.as_numpy("probabilities")
            way = f"binary in {binary_in}, out {binary_out}"
            check(f"{way}: the numbers of /v1/classify", found.shape == (2, 1000) and (found == expected).all(), found)
            check(f"{way}: features", answer.as_numpy("features").shape == (2, 2048))
            check(f"{way}: the id comes back", answer.get_response()["id"] == "one")

    outputs = [triton.InferRequestedOutput("probabilities", class_count=3)]
    texts = client.infer(MODEL, [encoded([picture], True)], outputs=outputs).as_numpy("probabilities")
    value, index, label = texts[0][0].decode().split(":")
    check(f"classification: {label} {float(value):.4f}",
          texts.shape == (1, 3) and int(index) == best and numpy.float32(value) == expected[best], texts)

    numbers = numpy.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=numpy.float32)
    answers = []
    for binary in (True, False):
        tensor = triton.InferInput("input", numbers.shape, "FP32")
        tensor.set_data_from_numpy(numbers, binary_data=binary)
        answers.append(client.infer(MODEL, [tensor]).as_numpy("logits"))
    check("a raw tensor, in binary and in JSON, with all outputs", (answers[0] == answers[1]).all() and answers[0].shape == (2, 1000))

    for algorithm in ("gzip", "deflate"):
        answer = client.infer(MODEL, [encoded([picture], True)], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)
        check(f"a request in {algorithm}", (answer.as_numpy("probabilities")[0] == expected).all())

    config = client.get_model_config(MODEL, "1")
    check("the configuration names the outputs", [t["name"] for t in config["output"]] == ["logits", "probabilities", "features"], config)
    # The heads of the service stand there too.
    index = {m["name"]: m["state"] for m in client.get_model_repository_index()}
    check("the repository's index has the model", MODEL in index and set(index.values()) == {"READY"}, index)
    counted = [client.get_inference_statistics(*model)["model_stats"][0]["inference_count"] for model in ((), (MODEL,), (MODEL, "1"))]
    check("the statistics count images", min(counted) > 8, counted)
    shared = triton.InferInput("image", [1], "BYTES")
    shared.set_shared_memory("region", 100)
    try:
        client.infer(MODEL, [shared])
        check("shared memory is refused", False)
    except InferenceServerException as error:
        check(f"shared memory is refused: {error.message()}", "shared_memory_region" in error.message())

    # The asynchronous client drives several connections at one time.
    many = triton.InferenceServerClient(base.removeprefix("http://"), concurrency=4)
    pending = [many.async_infer(MODEL, [encoded([picture], True)]) for _ in range(8)]
    found = [request.get_result().as_numpy("probabilities")[0] for request in pending]
    check("eight requests at one time", all((row == expected).all() for row in found))
    many.close()

    for what, call in (("no image", lambda: client.infer(MODEL, [encoded([b"%PDF-1.7"], True)])),
                       ("another model", lambda: client.infer("other", [encoded([picture], True)]))):
        try:
            call()
            check(f"{what} is refused", False)
        except InferenceServerException as error:
            check(f"{what} is refused: {error.message()}", bool(error.message()))
    check("another model is not ready", not client.is_model_ready("other"))
    client.close()
    print("triton: all is well")


if __name__ == "__main__":
    main()
