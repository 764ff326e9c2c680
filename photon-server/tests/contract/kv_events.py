"""What a router sees of the cache: a subscriber as vLLM's, its chains of hashes, and what it missed."""

import os
import struct
import time

import msgpack
import zmq

from checks import MODEL, check, done, picture_base64, post

address, replay_address = os.environ["PHOTON_KV_EVENTS"].split(",")
context = zmq.Context()
subscriber = context.socket(zmq.SUB)
subscriber.setsockopt(zmq.SUBSCRIBE, b"kv@")
subscriber.connect(f"tcp://{address}")

FIELDS = ("name", "hashes", "parent", "tokens", "block_size", "lora_id", "medium", "lora_name", "extra_keys")


def replay(first):
    """[(number, payload)] of all that is kept from a number on."""
    socket = context.socket(zmq.DEALER)
    socket.connect(f"tcp://{replay_address}")
    socket.send_multipart([b"", struct.pack(">Q", first)])
    got = []
    while True:
        assert socket.poll(20_000), "no end of the replay"
        empty, number, payload = socket.recv_multipart()
        assert empty == b""
        number = struct.unpack(">q", number)[0]
        if number == -1:
            socket.close()
            assert payload == b""
            return got
        got.append((number, payload))


def events(payloads):
    """All events, with names for what is stored."""
    for _, payload in payloads:
        timestamp, batch, rank = msgpack.unpackb(payload)
        assert abs(time.time() - timestamp) < 3600 and rank == 0
        for event in batch:
            yield dict(zip(FIELDS, event)) if event[0] == "BlockStored" else event


def ask(question, image=True):
    more = {"image_url": picture_base64()} if image else {}
    got, _, answer = post("/v1/query", {"question": question, "settings": {"max_tokens": 4}, **more})
    assert got == 200, answer


def words(text):
    return post("/tokenize", {"content": text})[2]["tokens"]


@check
def a_subscriber_hears_of_every_request():
    # Until the subscription has arrived nothing is heard.
    for i in range(100):
        ask(f"What is the square of the number {i} and of the ones that follow after it in the list of all numbers?", image=False)
        if subscriber.poll(300):
            break
    topic, number, payload = subscriber.recv_multipart()
    assert topic == f"kv@{address}@{MODEL}".encode() and len(number) == 8
    assert replay(struct.unpack(">Q", number)[0])[0] == (struct.unpack(">Q", number)[0], payload)


@check
def blocks_hold_the_tokens_of_the_question():
    question = "How many small boats are there between the two long bridges of the old town, and who owns the red one?"
    ask(question, image=False)
    own, size = words(" " + question), None
    found = False
    for event in events(replay(0)):
        if isinstance(event, dict):
            assert len(event["tokens"]) == len(event["hashes"]) * event["block_size"] and event["medium"] == "GPU"
            assert event["lora_id"] is None and event["lora_name"] is None
            text = ",".join(map(str, event["tokens"]))
            found |= ",".join(map(str, own[2:10])) in text
    assert found


@check
def hashes_are_chains():
    """Whoever asks after the same picture has its blocks for parents."""
    ask("What color is the star?")
    ask("What color is the circle, and is it larger than the star that is on the left of it?")
    known, pictures, continued = {}, set(), 0
    for event in events(replay(0)):
        if not isinstance(event, dict):
            for block in event[1]:
                del known[block]
            continue
        assert event["parent"] is None or event["parent"] in known, "a parent nobody told of"
        depth = 0 if event["parent"] is None else known[event["parent"]] + 1
        continued += event["parent"] is not None
        for i, block in enumerate(event["hashes"]):
            assert block not in known and 0 <= block < 1 << 64
            known[block] = depth + i
        if event["extra_keys"]:
            assert len(event["extra_keys"]) == len(event["hashes"])
            pictures |= {digest for keys in event["extra_keys"] if keys for digest in keys}
    assert continued > 0 and max(known.values()) > 2
    assert pictures and all(len(digest) == 64 for digest in pictures), pictures


@check
def a_replay_has_no_gaps_and_begins_where_it_is_asked_to():
    everything = replay(0)
    numbers = [number for number, _ in everything]
    assert numbers == list(range(len(numbers))) and len(numbers) > 3
    again = replay(numbers[-2])
    assert again[:2] == everything[-2:]
    assert replay(1 << 40) == []


done()
