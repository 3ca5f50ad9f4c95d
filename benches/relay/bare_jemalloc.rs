//! The bare loop in a program that has the relay's allocator; the bench's own has that of the system.
//! Called by the bench with a database's URL, the brokers and a topic; prints the microseconds of
//! processor time that producing its messages took, or nothing where that cannot be known.

#![allow(dead_code, reason = "the bench uses the rest of these files")]

mod bare;
mod cpu;
mod kafka;
mod outbox;
#[path = "../shared/mod.rs"]
mod shared;

use sqlx::{Connection, PgConnection};

use crate::bare::Messages;
use crate::kafka::Topic;
use crate::shared::Outcome;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [database, brokers, topic] = &arguments[..] else {
        return Err("database, brokers and topic are wanted".into());
    };
    let messages = Messages::read(&mut PgConnection::connect(database).await?).await?;
    let topic = Topic::existing(brokers, topic);
    let before = cpu::time(std::process::id());
    tokio::task::block_in_place(|| messages.produce(&topic))?;
    if let Some(used) = cpu::since(std::process::id(), before) {
        println!("{}", used.as_micros());
    }
    Ok(())
}
