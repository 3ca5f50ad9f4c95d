"""Reads a topic with the CloudEvents SDK and prints each event in CloudEvents' JSON format, one a
line: readback.py BROKERS TOPIC COUNT."""

import sys

from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event, to_structured_event
from confluent_kafka import Consumer

brokers, topic, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
consumer = Consumer(
    {"bootstrap.servers": brokers, "group.id": f"readback-python-{topic}", "auto.offset.reset": "earliest"}
)
consumer.subscribe([topic])
while left > 0:
    message = consumer.poll(0.5)
    if message is None or message.error():
        continue
    event = from_binary_event(
        KafkaMessage(headers=dict(message.headers()), key=message.key(), value=message.value())
    )
    print(to_structured_event(event).value.decode())
    left -= 1
consumer.close()
