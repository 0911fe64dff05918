"""The command lines that replication tools send over ssh, parsed without a shell.

A small part of sh's grammar is understood, as much as the tools use:

    script    := step ((';' | '&&' | '||') step)*
    step      := pipeline | 'if' script 'then' script ['else' script] 'fi'
    pipeline  := command ('|' command)*
    command   := (word | redirect)+         words with '...', "..." and backslashes
    redirect  := 2>/dev/null  >/dev/null  2>&1  1>&2  </dev/null

Everything else that means something to a shell (expansions, globs, subshells, other files, background jobs) is refused.
A line is only ever split into words here: nothing is expanded, looked up or run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from zkeep.errors import WrongUsage

LONGEST = 1 << 18
"Bytes of a command line; Linux passes at most half of it."
MOST_WORDS = 20_000
DEEPEST = 4
"How deep `if` may lie in `if`."
_SPACES = " \t"
_OPERATORS = ("&&", "||", ";", "|")
_UNQUOTED = frozenset("`$(){}*?[]!&\n\r<>^")
"Characters that would make a shell do something; refused unless they are quoted."
_IN_DOUBLE_QUOTES = frozenset('$`"\\')
"What a backslash takes the meaning of within double quotes."
_VARIABLES = {"$SHELL": "/bin/sh"}
"What tools ask for, and the answer: nothing of the real environment is told."


class CannotParse(WrongUsage):
    """A command line that is not one of those that are understood."""


class Redirect(Enum):
    """Where an output goes. The only file is /dev/null."""

    DROP_ERRORS = "2>/dev/null"
    DROP_OUTPUT = ">/dev/null"
    ERRORS_TO_OUTPUT = "2>&1"
    OUTPUT_TO_ERRORS = "1>&2"
    NO_INPUT = "</dev/null"


_REDIRECTS = {
    **{text: redirect for redirect in Redirect for text in (redirect.value,)},
    "1>/dev/null": Redirect.DROP_OUTPUT,
    ">&2": Redirect.OUTPUT_TO_ERRORS,
    "0</dev/null": Redirect.NO_INPUT,
}


@dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    redirects: tuple[Redirect, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    commands: tuple[Command, ...]


@dataclass(frozen=True)
class Choice:
    """`if condition; then these; else others; fi`"""

    condition: Script
    then: Script
    otherwise: Script


@dataclass(frozen=True)
class ScriptStep:
    """`after` says when it runs: always (`;`), or if the step before it succeeded (`&&`) or failed (`||`)."""

    after: str
    what: Pipeline | Choice


@dataclass(frozen=True)
class Script:
    steps: tuple[ScriptStep, ...] = ()


@dataclass
class _Token:
    """A word, an operator or a redirect."""

    text: str
    kind: str = "word"
    quoted: bool = False
    "Whether any of it was quoted: then it is never `if` or `then`."


def parse(line: str) -> Script:
    """Split a command line.

    Raises:
        CannotParse: it is not of the grammar above.
    """
    # Bound the work before any of it is done.
    if len(line) > LONGEST or len(line.encode("utf-8", "surrogatepass")) > LONGEST:
        raise CannotParse("the command line is too long")
    tokens = list(_Lexer(line).tokens())
    if len(tokens) > MOST_WORDS:
        raise CannotParse("the command line has too many words")
    # Two passes, as in a shell: words and operators first, then pipelines and ifs.
    parser = _Parser(tokens)
    script = parser.script(0)
    if parser.peek() is not None:
        raise CannotParse("the command line is not understood")
    return script


class _Lexer:
    def __init__(self, line: str) -> None:
        self._line = line
        self._at = 0

    def tokens(self) -> Iterator[_Token]:
        while self._skip_spaces():
            yield self._operator() or self._redirect() or self._word()

    def _skip_spaces(self) -> bool:
        """Move to the next token; False at the end."""
        while self._at < len(self._line) and self._line[self._at] in _SPACES:
            self._at += 1
        return self._at < len(self._line)

    def _operator(self) -> _Token | None:
        for text in _OPERATORS:
            if self._line.startswith(text, self._at):
                self._at += len(text)
                return _Token(text, "operator")
        return None

    def _redirect(self) -> _Token | None:
        """`2>/dev/null`, also with a space behind `>`."""
        for text in sorted(_REDIRECTS, key=len, reverse=True):
            operator = text.removesuffix("/dev/null")
            if not self._line.startswith(operator, self._at):
                continue
            end = self._at + len(operator)
            # The file, if the redirect has one: blanks may stand before it.
            if operator != text:
                while self._line[end : end + 1] in ("", *_SPACES) and end < len(self._line):
                    end += 1
                if not self._line.startswith("/dev/null", end):
                    continue
                end += len("/dev/null")
            # The word must end here: `>/dev/nullx` is another file.
            if self._line[end : end + 1] not in ("", *_SPACES, ";", "|", "&"):
                continue
            self._at = end
            return _Token(text, "redirect")
        return None

    def _word(self) -> _Token:
        token = _Token("")
        parts: list[str] = []
        while self._at < len(self._line):
            character = self._line[self._at]
            if character in _SPACES or character in ";|" or self._line.startswith("&&", self._at):
                break
            parts.append(self._piece(character, token, first=not parts))
        token.text = "".join(parts)
        return token

    def _piece(self, character: str, token: _Token, *, first: bool) -> str:
        """The next part of a word: quoted, escaped, or one plain character."""
        # Single quotes: all up to the next one, as it stands.
        if character == "'":
            end = self._line.find("'", self._at + 1)
            if end < 0:
                raise CannotParse("a quote is not closed")
            text = self._line[self._at + 1 : end]
            self._at, token.quoted = end + 1, True
            return _without_nul(text)
        # Double quotes: a backslash counts there, and of expansions only "$SHELL" is known.
        if character == '"':
            return self._double(token)
        # A backslash makes the next character an ordinary one.
        if character == "\\":
            following = self._line[self._at + 1 : self._at + 2]
            if not following or _is_control(following):
                raise CannotParse("a backslash is not allowed there")
            self._at, token.quoted = self._at + 2, True
            return following
        # Tools write PATH=... before a program: read, and dropped later.
        if first and (found := self._path_assignment()):
            return found
        # Everything that a shell would act on is refused, not passed on.
        if character in _UNQUOTED or (first and character in "~#") or _is_control(character):
            raise CannotParse(f"{character!a} is not allowed in a command line")
        self._at += 1
        return character

    def _double(self, token: _Token) -> str:
        parts: list[str] = []
        self._at += 1
        token.quoted = True
        while self._at < len(self._line):
            character = self._line[self._at]
            if character == '"':
                self._at += 1
                return _without_nul("".join(parts))
            parts.append(self._in_double(character))
        raise CannotParse("a quote is not closed")

    def _in_double(self, character: str) -> str:
        # "$SHELL" with the quote right behind it; any other expansion is refused.
        for name, value in _VARIABLES.items():
            if self._line.startswith(f'{name}"', self._at):
                self._at += len(name)
                return value
        if character in "$`":
            raise CannotParse(f"{character!a} is not allowed in a command line")
        # A backslash escapes what would mean something; before other characters it stands for itself.
        following = self._line[self._at + 1 : self._at + 2]
        if character == "\\" and following in _IN_DOUBLE_QUOTES and following:
            self._at += 2
            return following
        self._at += 1
        return character

    def _path_assignment(self) -> str | None:
        """`PATH=$PATH:/usr/sbin` before a command, which some tools write; it has no effect here."""
        if not self._line.startswith("PATH=", self._at):
            return None
        end = self._at + len("PATH=")
        while end < len(self._line) and self._line[end] not in _SPACES:
            end += 1
        # The only expansion that is let through here is PATH's own.
        value = self._line[self._at : end].replace("${PATH}", "").replace("$PATH", "")
        if not all(each.isalnum() or each in "=:/._-" for each in value):
            raise CannotParse("'$' is not allowed in a command line")
        self._at = end
        return "PATH="


def _is_control(character: str) -> bool:
    return character < " " or character == "\x7f"


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise CannotParse("a NUL is not allowed in a command line")
    return text


@dataclass
class _Parser:
    tokens: Sequence[_Token]
    at: int = field(default=0)

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _is(self, text: str, kind: str = "operator") -> bool:
        token = self.peek()
        return token is not None and (token.text, token.kind, token.quoted) == (text, kind, False)

    def _take(self, text: str, kind: str = "operator") -> bool:
        """Move on if the next token is this one."""
        found = self._is(text, kind)
        self.at += found
        return found

    def script(self, depth: int) -> Script:
        """Steps up to the end, or to a word that ends them."""
        steps: list[ScriptStep] = []
        after = ";"
        while self.peek() is not None and not any(self._is(word, "word") for word in ("then", "else", "fi")):
            # What runs, and after which result of the step before.
            steps.append(ScriptStep(after, self._choice(depth) if self._take("if", "word") else self._pipeline()))
            found = next((text for text in _OPERATORS[:3] if self._take(text)), None)
            if found is None:
                break
            after = found
        else:  # the end, or then/else/fi, right behind an operator: only `;` may stand last
            if after != ";":
                raise CannotParse(f"nothing follows {after}")
        return Script(tuple(steps))

    def _choice(self, depth: int) -> Choice:
        if depth >= DEEPEST:
            raise CannotParse("the command line is not understood: too many ifs")
        # if LIST; then LIST; [else LIST;] fi.
        condition = self.script(depth + 1)
        self._expect("then")
        then = self.script(depth + 1)
        otherwise = self.script(depth + 1) if self._take("else", "word") else Script()
        self._expect("fi")
        return Choice(condition, then, otherwise)

    def _expect(self, word: str) -> None:
        if not self._take(word, "word"):
            raise CannotParse(f"the command line is not understood: {word!r} is missing")

    def _pipeline(self) -> Pipeline:
        commands = [self._command()]
        while self._take("|"):
            commands.append(self._command())
        return Pipeline(tuple(commands))

    def _command(self) -> Command:
        words: list[str] = []
        redirects: list[Redirect] = []
        while (token := self.peek()) is not None and token.kind != "operator":
            if token.kind == "redirect":
                redirects.append(_REDIRECTS[token.text])
            # An assignment of PATH at the beginning changes nothing here: no program is looked up.
            elif words or token.text != "PATH=" or token.quoted:
                words.append(token.text)
            self.at += 1
        if not words:
            raise CannotParse("the command line is not understood: a command is missing")
        return Command(tuple(words), tuple(redirects))
