-- `GET /orders` walks one client's orders newest first. An order id is a UUIDv7, so its order is
-- the order of creation, and one index serves the filter, the sort and the cursor.
create index orders_by_client on orders (client_id, order_id);
