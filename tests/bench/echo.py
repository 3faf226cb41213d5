"""Stands for bench.gpu's process: sleeps, dies or answers as it is told. A file without heavy imports starts fast."""

import time


def echo(pipe, sizes) -> None:
    pipe.send({})
    while (word := pipe.recv()) != "sleep":
        if word == "die":
            raise SystemExit
        pipe.send({"error": "ValueError: x", "seconds": 0} if word == "fail" else {"found": {}, "seconds": 0})
    time.sleep(60)
