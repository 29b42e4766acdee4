"""A judge of two answers to whom the longer one is the better one."""

from tests.support.json_server import Asked, Reply, models

NAME = "judge"


def likes_long(asked: Asked) -> Reply:
    """Answer as a model with OpenAI's API would; it reads what ``quant.compare.judging`` asks."""
    if asked.body is None:
        return models([NAME])
    spoken = asked.body["messages"][-1]["content"]
    first, _, second = spoken.partition("[A]\n")[2].partition("\n\n[B]\n")
    word = "A" if len(first) > len(second) else "B" if len(second) > len(first) else "same"
    message = {"role": "assistant", "content": word}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Reply(
        {"id": "c", "object": "chat.completion", "created": 0, "model": NAME, "choices": [choice]}
    )
