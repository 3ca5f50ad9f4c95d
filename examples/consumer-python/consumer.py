"""Order totals per customer, in a database of one's own.

DATABASE_URL=... KAFKA_BROKERS=127.0.0.1:9092 python consumer.py GROUP [TOPIC]
"""

import json
import os
import pathlib
import sys

import psycopg
from confluent_kafka import Consumer, KafkaException

ADD = """
insert into order_totals as t (customer_id, currency, orders, amount_cents) values (%s, %s, %s, %s)
on conflict (customer_id, currency) do update
set orders = t.orders + excluded.orders, amount_cents = t.amount_cents + excluded.amount_cents
"""
SIGN = {b"order.created.v1": 1, b"order.cancelled.v1": -1}


def handle(cursor, message):
    """Applies one event; a repeat of one that was applied before changes nothing."""
    headers = dict(message.headers() or [])
    sign = SIGN.get(headers.get("ce_type"))
    if sign is None:
        return  # a type that is newer than this program
    new = "insert into handled_events (event_id) values (%s) on conflict do nothing"
    if cursor.execute(new, (headers["ce_id"].decode(),)).rowcount == 0:
        return
    order = json.loads(message.value())
    totals = (order["customerId"], order["currency"], sign, sign * order["amountCents"])
    cursor.execute(ADD, totals)


def main():
    group, topic = sys.argv[1], (sys.argv[2:] or ["orders.events.v1"])[0]
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BROKERS"],
            "group.id": group,
            "auto.offset.reset": "earliest",
            # An offset is committed after the effect, by us.
            "enable.auto.commit": False,
            "session.timeout.ms": 6000,
        }
    )
    consumer.subscribe([topic])
    # Any failure ends the process: what was not committed comes again at the next start.
    with psycopg.connect(os.environ["DATABASE_URL"]) as database:
        schema = pathlib.Path(__file__).parent.parent / "consumer.sql"
        with database.transaction():
            database.execute(schema.read_text())
        while True:
            messages = consumer.consume(num_messages=256, timeout=0.5)
            failed = next((m.error() for m in messages if m.error() and not m.error().retriable()), None)
            if failed:
                raise KafkaException(failed)
            messages = [m for m in messages if not m.error()]
            if not messages:
                continue
            # One transaction for the effect and for the ids by which repeats are known.
            with database.transaction(), database.cursor() as cursor:
                for message in messages:
                    handle(cursor, message)
            consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main()
