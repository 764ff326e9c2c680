"""The key that requests are routed by, as Photon's servers compute it: `POST /v1/route_key`.

Requests about the same picture have the same key. A router that sends equal keys to the same server has each picture
computed once, and each server's cache hold only its own pictures.
"""

import base64
import hashlib

# Servers answer with it, and clients send it for routers to read.
HEADER = "x-photon-route-key"


def route_key(begins_with):
    """The key of a request that begins with this: the bytes of its first picture's file; the address (str) where the
    picture is sent as one; without pictures, what the user says first (str)."""
    if isinstance(begins_with, str):
        begins_with = begins_with.strip().encode()
    return hashlib.sha256(begins_with).hexdigest()[:32]


def of_request(body):
    """The key of a request's JSON, of a skill or of a chat completion."""
    return route_key(_begins_with(body))


def _begins_with(body):
    messages = body.get("messages", [])
    parts = [part for message in messages for part in _parts(message)]
    pictures = [part.get("image_url") for part in parts] + [body.get(name) for name in ("image_url", "image", "images")]
    for picture in pictures:
        picture = picture.get("url") if isinstance(picture, dict) else picture
        picture = picture[0] if isinstance(picture, list) and picture else picture
        if picture:
            return _sent(picture)
    if not messages:
        return body.get("question", "")
    # Consecutive messages of the user are one turn.
    said = []
    for message in messages:
        if message["role"] == "user":
            said += [part["text"] for part in _parts(message) if part.get("text")]
        elif said:
            break
    return "\n".join(said)


def _parts(message):
    content = message.get("content") or ""
    return content if isinstance(content, list) else [{"type": "text", "text": content}]


def _sent(picture):
    """A picture as it is before base64, or its address."""
    picture = picture.strip()
    if picture.lower().startswith(("http://", "https://")):
        return picture
    data = picture.split("base64,", 1)[-1] if picture.startswith("data:") else picture
    return base64.b64decode("".join(data.split()).rstrip("=") + "==")
