//! Order totals per customer, in a database of one's own: a consumer with the inbox.
//!
//! `DATABASE_URL=… KAFKA_BROKERS=127.0.0.1:9092 cargo run --example consumer -- GROUP [TOPIC]`

use events::OrderEvent;
use events::inbox::{HandleError, Handler, Inbox, SCHEMA, Settings};
use events::kafka::Event;
use rdkafka::ClientConfig;
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;

struct Totals;

impl Handler for Totals {
    async fn handle(&mut self, event: &Event, connection: &mut PgConnection) -> Result<(), HandleError> {
        let (orders, customer, currency, amount) =
            match OrderEvent::from_json(&event.attributes.kind, &event.data) {
                Ok(OrderEvent::Created(order)) => (1, order.customer_id, order.currency, order.amount_cents),
                Ok(OrderEvent::Cancelled(order)) => {
                    (-1, order.customer_id, order.currency, -order.amount_cents)
                }
                // A type that is newer than this program.
                Err(events::UnknownEvent::Type(_)) => return Ok(()),
                Err(malformed) => return Err(malformed.into()),
            };
        sqlx::query(
            "insert into order_totals as t (customer_id, currency, orders, amount_cents) values ($1, $2, $3, $4)
             on conflict (customer_id, currency) do update
             set orders = t.orders + excluded.orders, amount_cents = t.amount_cents + excluded.amount_cents",
        )
        .bind(customer)
        .bind(currency)
        .bind(orders)
        .bind(amount)
        .execute(connection)
        .await?;
        Ok(())
    }
}

#[tokio::main]
#[allow(clippy::disallowed_methods, reason = "an example has no command line to declare its settings on")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let group = arguments.next().ok_or("usage: consumer GROUP [TOPIC]")?;
    let topic = arguments.next().unwrap_or_else(|| "orders.events.v1".to_owned());
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(SCHEMA).execute(&pool).await?;
    sqlx::raw_sql(include_str!("consumer.sql")).execute(&pool).await?;

    let mut kafka = ClientConfig::new();
    kafka.set("bootstrap.servers", std::env::var("KAFKA_BROKERS")?);
    let inbox = Inbox::start(Settings::new(kafka, group, topic), pool, Totals)?;
    let shutdown = CancellationToken::new();
    let interrupted = async {
        let _ = tokio::signal::ctrl_c().await;
        shutdown.cancel();
    };
    tokio::join!(inbox.run(shutdown.clone()), interrupted);
    Ok(())
}
