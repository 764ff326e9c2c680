"""Any skill through a gateway that knows only chat completions.

    python ask.py http://127.0.0.1:3000 photo.jpg '{"skill": "detect", "object": "car"}'
    python ask.py http://127.0.0.1:3000 photo.jpg '{"skill": "query", "question": "What is it?"}' --model moondream2
"""

import argparse
import base64
import json
import pathlib
import sys
import urllib.request

sys.path.append(str(pathlib.Path(__file__).parents[1]))
import route_key


def body(picture, asked, model):
    """A chat completion that asks it."""
    url = "data:image/*;base64," + base64.b64encode(picture).decode()
    text = asked.get("question") or asked.get("object") or "Describe this picture."
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **asked}


def ask(gateway, picture, asked, model="demo"):
    """The answer as Moondream's own API has it, with `metrics`."""
    headers = {"Content-Type": "application/json", route_key.HEADER: route_key.route_key(picture)}
    data = json.dumps(body(picture, asked, model)).encode()
    request = urllib.request.Request(f"{gateway}/v1/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["moondream"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gateway")
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("asked", type=json.loads, help="a request's JSON, without the picture")
    parser.add_argument("--model", default="demo")
    args = parser.parse_args()
    print(json.dumps(ask(args.gateway, args.picture.read_bytes(), args.asked, args.model), indent=1))


if __name__ == "__main__":
    main()
