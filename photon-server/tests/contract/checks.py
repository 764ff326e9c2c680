"""What all scripts here share: where the server is, a picture, and a line for every check that passed."""

import base64
import json
import os
import sys
import traceback
import urllib.error
import urllib.request

URL = os.environ["PHOTON_URL"]
PICTURE = os.environ["PHOTON_PICTURE"]
MODEL = os.environ["PHOTON_MODEL"]
SKILLS = os.environ["PHOTON_SKILLS"].split(",")

failed = []


def check(function):
    """Runs a check at once and says how it went."""
    try:
        function()
        print(f"ok {function.__name__}")
    except Exception:
        failed.append(function.__name__)
        print(f"FAILED {function.__name__}")
        traceback.print_exc()
    return function


def done():
    """Ends the script."""
    sys.exit(1 if failed else 0)


def picture_bytes():
    with open(PICTURE, "rb") as file:
        return file.read()


def picture_base64():
    return base64.b64encode(picture_bytes()).decode()


def picture_uri():
    return "data:image/png;base64," + picture_base64()


def post(path, body, headers=None, kind="application/json"):
    """(status, headers, body) of a request, whatever the status; JSON is read."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, headers={"Content-Type": kind, **(headers or {})})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers, read(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, read(error)


def get(path, headers=None):
    request = urllib.request.Request(URL + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.headers, read(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, read(error)


def read(response):
    text = response.read().decode()
    return json.loads(text) if "json" in response.headers.get("Content-Type", "") and "nd" not in response.headers["Content-Type"] else text


def in_unit(*values):
    assert all(0 <= value <= 1 for value in values), values
