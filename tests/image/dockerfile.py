"""The little of a Dockerfile that says how an image runs."""

import json
import pathlib
import re


class Image:
    """One stage with all that it is built on."""

    def __init__(self, path, name):
        stages, current = {}, None
        text = re.sub(r"\\\n", " ", pathlib.Path(path).read_text())
        for line in text.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            word, rest = line.split(None, 1)
            if word == "FROM":
                parts = rest.split()
                current = {"from": parts[0], "lines": []}
                stages[parts[2] if len(parts) == 3 else "final"] = current
            else:
                current["lines"].append((word, rest))
        self.lines = []
        while name in stages:
            self.lines = stages[name]["lines"] + self.lines
            name = stages[name]["from"]
        self.base = name

    def last(self, word):
        found = [rest for given, rest in self.lines if given == word]
        return found[-1] if found else None

    def command(self):
        return json.loads(self.last("ENTRYPOINT")) + json.loads(self.last("CMD"))

    def entrypoint(self):
        return json.loads(self.last("ENTRYPOINT"))

    def probe(self):
        return json.loads(self.last("HEALTHCHECK").split("CMD", 1)[1])

    def user(self):
        return self.last("USER")

    def copied(self):
        """What is copied into the image, as its sources are named."""
        lines = [rest for word, rest in self.lines if word == "COPY"]
        return [path for rest in lines for path in rest.split()[:-1] if not path.startswith("--")]

    def env(self):
        return dict(pair.split("=", 1) for word, rest in self.lines if word == "ENV" for pair in rest.split())
