//! Private PostgreSQL, Kafka and mailbox, and the processes of the pipeline: what the
//! demo shows and what the tests stand on.

pub mod guard;
pub mod mailbox;
pub mod process;
pub mod programs;
pub mod services;
pub mod testing;
pub mod topic;
