"""The bus: queues of messages inside of the hub's store, and RabbitMQ as its door and outlet."""
