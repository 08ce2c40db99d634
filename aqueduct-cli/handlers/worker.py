#!/usr/bin/env python3
"""Writes down what came: one program for all events, a line of JSON for each, a line of JSON as its result."""

import json
import os
import sys


class Permanent(Exception):
    """No attempt can succeed."""


def handle(event, handled):
    if event["type"] == "github.ping":
        raise Permanent(f"nobody handles {event['type']}")
    handled.write(f"{event['id']} {event.get('partitionkey', '-')}\n")
    handled.flush()


def main():
    with open(os.environ.get("HANDLED", "handled.txt"), "a") as handled:
        for line in sys.stdin:
            ask = json.loads(line)
            result = {"id": ask["id"], "result": "done"}
            try:
                handle(ask["event"], handled)
            except Permanent as error:
                result.update(result="permanent", error=str(error))
            except Exception as error:
                result.update(result="transient", error=str(error))
            print(json.dumps(result), flush=True)


main()
