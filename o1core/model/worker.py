"""The process that runs what a stranger's checkpoint brings along, its chat template and its tokenizer: `python -P
worker.py SECONDS MEMORY_MIB`, started by o1core.model.sandbox and never by hand.

It is run by its path and imports nothing of o1core, so that it starts in a tenth of a second and holds no torch. One
request a line on stdin, one reply a line on stdout, both JSON:

    {"template": text, "values": {name: value}, "day": "2026-11-30"}
                                      compiles the template that the next requests are about        -> {}
    {"reads": true}                   the names that it reads                                       -> {"reads": [...]}
    {"messages": [...], "most": N}    renders them to at most N characters                          -> {"text": ...}
    {"tokenizer": path, "texts": [...]}
                                      loads tokenizer.json, encodes and decodes                     -> {}

What fails is answered by {"error": message}, or by {"swollen": true} where memory ran out.

The limits are the kernel's, because a template spends its time in C code (a power, a repeated string) and a tokenizer
in Rust, where no Python handler runs: SIGPROF kills the process after SECONDS of processor time on one request, and
memory beyond MEMORY_MIB cannot be had. Left out on purpose: a limit for each filter and operator, of which one is
always forgotten.
"""

import contextlib
import datetime
import json
import resource
import signal
import sys
from typing import Any, NoReturn

TOKENS_A_BYTE, CHARACTERS_A_TOKEN, SPARE = 16, 1024, 4096  # a tokenizer that makes more of a probe is out of its mind


def environment(day: str) -> Any:
    """Jinja as chat templates expect it (the switches and names that transformers gives them), and nothing more.

    Nothing here follows the clock or chance: a prompt is the same in a run, in its resume and on every rank.
    """
    import jinja2.ext
    import jinja2.sandbox
    from jinja2.nodes import CallBlock

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what a trainer of transformers learns; here it is the text alone."""

        tags = {"generation"}  # noqa: RUF012 - jinja2's way to declare them

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

        def marked(self, caller: Any) -> Any:
            return caller()

    class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Jinja's sandbox lets an unsafe attribute be printed as nothing: here reaching for one is an error."""

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
            raise jinja2.exceptions.SecurityError(f"{attribute!r} of a {type(obj).__name__} is out of bounds")

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = to_json
    sandbox.globals["raise_exception"] = refuse
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.fromisoformat(day).strftime(form)
    del sandbox.filters["random"], sandbox.globals["lipsum"]
    return sandbox


def compiled(text: str, day: str) -> tuple[Any, list[str]]:
    """The template, and the names that it reads and that neither it nor Jinja sets."""
    from jinja2 import meta

    sandbox = environment(day)
    return sandbox.from_string(text), sorted(
        meta.find_undeclared_variables(sandbox.parse(text)) - sandbox.globals.keys()
    )


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; templates expect plain JSON."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> NoReturn:
    """What templates call to reject a conversation."""
    import jinja2

    raise jinja2.TemplateError(message)


def probe(path: str, texts: list[str]) -> None:
    """Load a tokenizer and use it as a run does. Raises whatever the library does; a panic may end the process.

    Text that is not ASCII may be refused (a tokenizer without an unknown token), but nothing may panic.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(path)
    backend.no_truncation()
    backend.no_padding()
    for text in texts:
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
            backend.decode(ids, skip_special_tokens=True)
        except Exception as error:
            if text.isascii():
                raise ValueError(f"cannot encode {text!r}: {error}") from None
        else:
            if len(ids) > TOKENS_A_BYTE * len(text.encode()) + SPARE:
                raise ValueError(f"makes {len(ids)} tokens of the {len(text)} characters {text!r}")
    every = list(backend.get_vocab(with_added_tokens=True).values())
    text = backend.decode(every, skip_special_tokens=False)
    if len(text) > CHARACTERS_A_TOKEN * len(every) + SPARE:
        raise ValueError(f"decodes its {len(every)} tokens to {len(text)} characters")


def main(seconds: float, memory_mib: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes stdin
    for limit, value in (
        (resource.RLIMIT_AS, memory_mib << 20),
        (resource.RLIMIT_FSIZE, 0),  # a stranger's program never makes this process write a file
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(limit, (value, value))
    sys.dont_write_bytecode = True
    template: Any = None
    values: dict[str, Any] = {}
    reads: list[str] = []
    for line in sys.stdin:
        request, reply = json.loads(line), {}
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if "template" in request:
                template, reads = compiled(request["template"], request["day"])
                values = request["values"]
            elif "reads" in request:
                reply = {"reads": reads}
            elif "tokenizer" in request:
                probe(request["tokenizer"], request["texts"])
            else:
                given = {"messages": request["messages"], "tools": None, "documents": None}
                text = template.render(values | given, add_generation_prompt=True)
                if len(text) > request["most"]:
                    raise ValueError(f"the prompt has {len(text)} characters, more than the {request['most']} allowed")
                reply = {"text": text}
            answer = json.dumps(reply)
        except MemoryError:
            answer = '{"swollen": true}'
        except BaseException as error:  # a panic in Rust is no Exception
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"[:4000]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
