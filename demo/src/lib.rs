//! Private PostgreSQL, Kafka and mailbox, and the processes of the pipeline: what the
//! demo shows and what the tests stand on.

pub mod testing;
