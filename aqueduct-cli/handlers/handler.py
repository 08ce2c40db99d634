#!/usr/bin/env python3
"""Writes down what came, one program for each event."""

import json
import os
import sys

PERMANENT, TRANSIENT = 65, 75


def handle(event):
    if event["type"] == "github.ping":
        print("nobody handles", event["type"], file=sys.stderr)
        return PERMANENT
    try:
        with open(os.environ.get("HANDLED", "handled.txt"), "a") as handled:
            handled.write(f"{event['id']} {event.get('partitionkey', '-')}\n")
    except OSError as error:
        print(error, file=sys.stderr)
        return TRANSIENT
    return 0


sys.exit(handle(json.load(sys.stdin)))
