"""The bus: queues of messages inside of the hub's store, and RabbitMQ as its door and outlet.

Publishing, taking and acknowledging are in `store.queues`; which queues there are is data, in `core.queues`;
those who take from them are here.
"""
