"""A child process that runs one model; `processes.py` starts it."""

import dataclasses

from tflite_tools.codec import pipes_of_child, read_message, write_message
from tflite_tools.errors import InvalidModelError, UnsupportedModelError
from tflite_tools.runner import ModelRunner


def main() -> None:
    """Loads the model it is sent, then answers batch after batch until the pipe closes."""
    requests, answers = pipes_of_child()
    header, arrays = read_message(requests)
    try:
        runner = ModelRunner(arrays["model"].tobytes(), **header["options"])
    except KeyError as error:
        write_message(answers, {"error": "KeyError", "message": str(error.args[0])})
        return
    except (UnsupportedModelError, InvalidModelError) as error:
        write_message(answers, {"error": type(error).__name__, "message": str(error)})
        return
    described = {
        "inputs": [dataclasses.asdict(spec) for spec in runner.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in runner.outputs],
        "signatures": list(runner.signatures),
        "keeps_state": runner.keeps_state,
        "own_batch": runner.own_batch(),
    }
    write_message(answers, described)
    while True:
        try:
            header, feeds = read_message(requests)
        except EOFError:
            return
        try:
            results = [runner.once(feeds)] if header["once"] else runner.run(feeds)
        except UnsupportedModelError as error:
            write_message(answers, {"error": type(error).__name__, "message": str(error)})
            continue
        flat = {f"{k}:{name}": value for k, part in enumerate(results) for name, value in part.items()}
        write_message(answers, {"calls": len(results)}, flat)
