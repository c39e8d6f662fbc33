"""django-pgpubsub listens on a connection that is its own for as long as it runs."""

import time
from dataclasses import dataclass
from threading import Thread

from tests.compat.case import Case


def check() -> None:
    import pgpubsub
    from django.db import connection
    from pgpubsub import listen

    heard: list[str] = []

    @dataclass
    class Said(pgpubsub.Channel):
        word: str

    Said.register(lambda word: heard.append(word))

    def work() -> None:
        listen.listen()
        connection.close()

    listener = Thread(target=work)
    listener.start()
    deadline = time.monotonic() + 20
    while not heard and time.monotonic() < deadline:
        pgpubsub.notify(Said, word="hello")
        time.sleep(0.3)
    listen.POLL = False
    listener.join(20)
    assert heard[:1] == ["hello"]


CASE = Case(
    packages=["django-pgpubsub"],
    variables={"PGPUBSUB_USE_PSYCOPG_V3": "True"},
    apps=["pgtrigger", "pgpubsub"],
    tried="`listen` hears what `notify` says",
    note="Set `PGPUBSUB_USE_PSYCOPG_V3=True` if psycopg2 is installed too. A listening process"
    " holds one connection.",
    check=check,
)
