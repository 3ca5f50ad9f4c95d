//! Deliveries that are repeated, to notifiers that come and go: one notification, one mail.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::Utc;
use demo::mailbox::{Fault, Mailbox, Step, Wrong};
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use events::{Attributes, EventId};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(120);
const NO_MAIL: &str = "smtp://127.0.0.1:1";

async fn started(server: Result<Server, demo::process::ProcessError>) -> Server {
    let mut server = server.expect("it starts");
    server.ready(SOON).await.expect("ready");
    server
}

fn notifier(database: &Database, topic: &Topic, group: &str) -> Result<Server, demo::process::ProcessError> {
    let settings = [("NOTIFY_GROUP", group)];
    Server::relay_stages(&["notify"], database.url(), topic.brokers(), topic.name(), NO_MAIL, &settings)
}

async fn order(http: &reqwest::Client, api: &str, key: &str) -> Option<String> {
    let body = serde_json::json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"});
    let request = http.post(format!("{api}/orders")).header("idempotency-key", key).json(&body);
    let answer: serde_json::Value = request.send().await.ok()?.json().await.ok()?;
    answer["orderId"].as_str().map(str::to_owned)
}

async fn rows(pool: &PgPool, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(pool).await.expect("counted")
}

/// Waits until the group has handled everything that lies on the topic.
async fn caught_up(topic: &Topic, group: &str, partitions: i32) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", topic.brokers())
        .set("group.id", group)
        .create()
        .expect("a consumer");
    eventually("the group to have handled everything", SOON, async || {
        tokio::task::block_in_place(|| {
            let mut asked = TopicPartitionList::new();
            for partition in 0..partitions {
                asked.add_partition(topic.name(), partition);
            }
            let committed = consumer.committed_offsets(asked, Duration::from_secs(5)).ok()?;
            for partition in 0..partitions {
                let (_, high) =
                    consumer.fetch_watermarks(topic.name(), partition, Duration::from_secs(5)).ok()?;
                let at = committed.find_partition(topic.name(), partition)?.offset();
                if high > 0 && at != Offset::Offset(high) {
                    return None;
                }
            }
            Some(())
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_deliveries_of_an_event_to_two_notifiers_through_a_rebalance_make_one_notification() {
    const PARTITIONS: i32 = 4;
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(PARTITIONS).await;
    let group = format!("notify-{}", topic.name());
    let api = started(Server::orders(database.url(), &[])).await;
    let publisher =
        Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), NO_MAIL, &[]);
    let _publisher = started(publisher).await;
    order(&reqwest::Client::new(), api.url(), "key").await.expect("an order");
    let event = eventually("the event", SOON, async || topic.read().await.pop()).await;
    let mut headers = OwnedHeaders::new();
    for (key, value) in &event.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    // To every partition, so that two notifiers have it at the same time.
    let deliver = async |numbers: std::ops::Range<i32>| {
        for number in numbers {
            let again = FutureRecord::to(topic.name())
                .partition(number % PARTITIONS)
                .key(event.key.as_deref().expect("a key"))
                .payload(event.value.as_deref().expect("a value"))
                .headers(headers.clone());
            producer.send(again, SOON).await.expect("delivered");
        }
    };
    deliver(0..40).await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let url = mailbox.smtp_url();
    let mailer = Server::relay_stages(&["mail"], database.url(), topic.brokers(), topic.name(), &url, &[]);
    let _mailer = started(mailer).await;
    let one = started(notifier(&database, &topic, &group)).await;
    let (other, ()) = tokio::join!(started(notifier(&database, &topic, &group)), deliver(40..100));
    caught_up(&topic, &group, PARTITIONS).await;
    assert_eq!(topic.read().await.len(), 101);

    // The dedup keys are kept for 30 days. Without them the notification itself is what makes it one.
    let forgotten = sqlx::query("delete from inbox").execute(&pool).await.expect("forgotten");
    assert_eq!(forgotten.rows_affected(), 1);
    deliver(100..110).await;
    caught_up(&topic, &group, PARTITIONS).await;
    assert_eq!(rows(&pool, "select count(*) from inbox").await, 1, "handled anew");
    assert_eq!(rows(&pool, "select count(*) from notifications").await, 1);
    eventually("the mail to be sent", SOON, async || {
        (rows(&pool, "select count(*) from notifications where state = 'sent'").await == 1).then_some(())
    })
    .await;
    assert_eq!(mailbox.count(), 1, "one mail");
    for notifier in [&one, &other] {
        let page = reqwest::get(format!("{}/metrics", notifier.url())).await.expect("answered");
        let page = page.text().await.expect("a page");
        assert!(
            page.contains(r#"notifications_total{outcome="no_address"} 0"#),
            "a repeat has an address: {page}"
        );
    }
}

/// The members of a group that is at work, and of them those that have partitions. A member that came anew has
/// another id.
async fn members(brokers: &str, group: &str) -> Option<(HashSet<String>, HashSet<String>)> {
    let (brokers, group) = (brokers.to_owned(), group.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("a consumer");
        let groups = consumer.fetch_group_list(Some(&group), SOON).ok()?;
        let group = groups.groups().first().filter(|group| group.state() == "Stable")?;
        let id = |member: &rdkafka::groups::GroupMemberInfo| member.id().to_owned();
        // Two bytes of version, then how many topics.
        let at_work = |member: &&rdkafka::groups::GroupMemberInfo| {
            member.assignment().and_then(|bytes| bytes.get(2..6)).is_some_and(|topics| topics != [0; 4])
        };
        let members = group.members().iter();
        Some((members.clone().map(id).collect(), members.filter(at_work).map(id).collect()))
    });
    asked.await.expect("asked")
}

/// Waits until two members share the partitions, and gives their ids.
async fn shared_by_two(topic: &Topic, group: &str) -> HashSet<String> {
    eventually("two members with partitions", SOON, async || {
        let (members, at_work) = members(topic.brokers(), group).await?;
        (members.len() == 2 && members == at_work).then_some(members)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_notifiers_through_five_rebalances_under_load_make_one_mail_per_order() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(6).await;
    let group = format!("notify-{}", topic.name());
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let api = started(Server::orders(database.url(), &[])).await;
    let settings = [("NOTIFY_GROUP", group.as_str())];
    let url = mailbox.smtp_url();
    let all = Server::relay(database.url(), topic.brokers(), topic.name(), &url, &settings);
    let _relay = started(all).await;
    let mut other = started(notifier(&database, &topic, &group)).await;

    let http = reqwest::Client::new();
    let over = AtomicBool::new(false);
    // As long as members come and go.
    let load = async {
        let mut orders = Vec::new();
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        while !over.load(Ordering::SeqCst) {
            pace.tick().await;
            let key = format!("key-{}", orders.len());
            let placed = eventually("an order", SOON, async || order(&http, api.url(), &key).await);
            orders.push(placed.await);
        }
        orders
    };
    // It leaves in good order or dies, and comes back: each is a rebalance, while events flow.
    let comings = async {
        let mut seen = shared_by_two(&topic, &group).await;
        for round in 1..=5_usize {
            let before = rows(&pool, "select count(*) from notifications").await;
            eventually("events to flow", SOON, async || {
                (rows(&pool, "select count(*) from notifications").await >= before + 20).then_some(())
            })
            .await;
            if round % 2 == 0 {
                other.kill().expect("killed");
            } else {
                other.terminate().await.expect("stopped");
            }
            other.start_again().expect("started again");
            other.ready(SOON).await.expect("ready");
            // The one that is gone may still be listed for a moment.
            let shared = eventually("a rebalance", SOON, async || {
                let shared = shared_by_two(&topic, &group).await;
                (!shared.is_subset(&seen)).then_some(shared)
            })
            .await;
            seen.extend(shared);
        }
        over.store(true, Ordering::SeqCst);
        assert_eq!(seen.len(), 1 + 6, "one member stayed, the other came six times, and each had partitions");
    };
    let (orders, ()) = tokio::join!(load, comings);

    eventually("every mail to be sent", SOON, async || {
        let sent = rows(&pool, "select count(*) from notifications where state = 'sent'").await;
        (sent == i64::try_from(orders.len()).expect("a number")).then_some(())
    })
    .await;
    caught_up(&topic, &group, 6).await;
    let expected: HashSet<String> =
        orders.iter().map(|order| format!("confirmation.{order}.1@localhost")).collect();
    assert_eq!(mailbox.message_ids().into_keys().collect::<HashSet<_>>(), expected);
    assert_eq!(mailbox.count(), orders.len(), "one mail per order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_and_a_reordering_are_counted() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let group = format!("notify-{}", topic.name());
    let notifier = started(notifier(&database, &topic, &group)).await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    let order = Uuid::now_v7();
    for version in [1, 3, 2] {
        let event = Attributes {
            id: EventId::new(),
            source: "/orders",
            // A type without e-mail: an order that is not there has no address either.
            kind: "order.looked-at.v1",
            subject: order,
            time: Utc::now(),
            version,
            traceparent: None,
            tracestate: None,
        };
        let key = order.to_string();
        let record =
            FutureRecord::to(topic.name()).key(&key).payload("{}").headers(events::kafka::headers(&event));
        producer.send(record, SOON).await.expect("delivered");
    }
    eventually("all three to be counted", SOON, async || {
        let page = reqwest::get(format!("{}/metrics", notifier.url())).await.ok()?.text().await.ok()?;
        let counts = [("foreign", 3), ("gap", 1), ("reordered", 1), ("repeated", 0)];
        counts
            .iter()
            .all(|(outcome, n)| page.contains(&format!("notifications_total{{outcome=\"{outcome}\"}} {n}\n")))
            .then_some(())
    })
    .await;
}

/// Runs a command of the relay with `--json`; gives its exit code and what it printed.
async fn command(database: &Database, topic: &Topic, dead: &str, arguments: &[&str]) -> (i32, Value) {
    let mut program = std::env::current_exe().expect("this file");
    program.pop();
    program.pop();
    let output = tokio::process::Command::new(program.join("relay"))
        .args(arguments)
        .arg("--json")
        .env_clear()
        .env("DATABASE_URL", database.url())
        .env("KAFKA_BROKERS", topic.brokers())
        .env("KAFKA_TOPIC", topic.name())
        .env("NOTIFY_DEAD_TOPIC", dead)
        .env("RELAY_OPERATOR", "ada")
        .output()
        .await
        .expect("the relay is built");
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("it ends by itself"), printed)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_notify_cannot_handle_lies_aside_until_an_operator_has_it_handled_or_gives_it_up() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(2).await;
    let group = format!("notify-{}", topic.name());
    // It does not exist yet.
    let dead = format!("{}.dead", topic.name());
    // The cause that an operator can mend: what this order's notification is refused for.
    sqlx::raw_sql(
        "create function refuse() returns trigger language plpgsql as
           $$ begin raise exception 'this recipient is not allowed'; end $$;
         create trigger refuse before insert on notifications for each row
           when (new.recipient = 'poison@example.com') execute function refuse()",
    )
    .execute(&pool)
    .await
    .expect("a trigger");
    let api = started(Server::orders(database.url(), &[])).await;
    let stages = ["publish", "notify"];
    let settings = [("NOTIFY_GROUP", group.as_str()), ("NOTIFY_DEAD_TOPIC", dead.as_str())];
    let (url, brokers) = (database.url(), topic.brokers());
    let relay = Server::relay_stages(&stages, url, brokers, topic.name(), NO_MAIL, &settings);
    let relay = started(relay).await;
    let http = reqwest::Client::new();
    let body = serde_json::json!({"customerId": 1, "amountCents": 5, "customerEmail": "poison@example.com"});
    let request = http.post(format!("{}/orders", api.url())).header("idempotency-key", "poison");
    let answer: Value = request.json(&body).send().await.expect("answered").json().await.expect("JSON");
    let poison = answer["orderId"].as_str().expect("an order").to_owned();

    // An event whose data is not what its type says, and a later one of its order.
    let original = eventually("the event", SOON, async || topic.read().await.pop()).await;
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    let malformed = Uuid::now_v7().to_string();
    let ids = [Uuid::now_v7().to_string(), Uuid::now_v7().to_string()];
    for (id, version) in ids.iter().zip(["1", "2"]) {
        let mut headers = OwnedHeaders::new();
        for (key, value) in &original.headers {
            let value = match key.as_str() {
                "ce_id" => id.as_bytes(),
                "ce_subject" => malformed.as_bytes(),
                "ce_orderversion" => version.as_bytes(),
                // No mail is made of a type that is not known: that is no refusal.
                "ce_type" if version == "2" => b"order.looked-at.v1",
                _ => value,
            };
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let record = FutureRecord::to(topic.name()).key(&malformed).payload("{}").headers(headers);
        producer.send(record, SOON).await.expect("delivered");
    }
    let stuck = eventually("both to lie aside", SOON, async || {
        let (_, list) = command(&database, &topic, &dead, &["inbox", "list", "--consumer", "notify"]).await;
        let stuck = list["stuck"].as_array()?.clone();
        (stuck.len() == 2 && stuck.iter().any(|stuck| stuck["behind"] == 1)).then_some(stuck)
    })
    .await;
    let of = |order: &str| stuck.iter().find(|stuck| stuck["orderId"] == order).expect("listed");
    assert!(of(&poison)["reason"].as_str().is_some_and(|why| why.contains("not allowed")), "{stuck:?}");
    assert!(of(&malformed)["reason"].as_str().is_some_and(|why| why.contains("malformed")), "{stuck:?}");
    // All other orders go on, while the missing topic is told.
    order(&http, api.url(), "innocent").await.expect("an order");
    eventually("the innocent to be notified", SOON, async || {
        (rows(&pool, "select count(*) from notifications").await == 1).then_some(())
    })
    .await;
    let (status, page) = eventually("the missing topic to be told", SOON, async || {
        let answer = http.get(format!("{}/readyz", relay.url())).send().await.ok()?;
        let (status, page) = (answer.status().as_u16(), answer.json::<Value>().await.ok()?);
        let reason = page["stages"]["notify"]["reason"].as_str()?;
        reason.contains(&dead).then(|| (status, page.clone()))
    })
    .await;
    assert_eq!((status, &page["stages"]["notify"]["problem"]), (200, &Value::Null), "it makes progress");
    let (code, applied) = command(&database, &topic, &dead, &["topic", "apply"]).await;
    assert_eq!((code, applied["changes"].as_array().map(Vec::len)), (0, Some(1)), "{applied:#}");
    let letters = eventually("the dead letters", SOON, async || {
        let letters = demo::topic::read(topic.brokers(), &dead, SOON).await.ok()?;
        (letters.len() >= 3).then_some(letters)
    })
    .await;
    let letter = letters.iter().find(|letter| letter.header("ce_id") == Some(&ids[0])).expect("forwarded");
    for (name, value) in original.headers.iter().filter(|(name, _)| name == "ce_source" || name == "ce_type")
    {
        assert_eq!(letter.header(name).map(str::as_bytes), Some(value.as_slice()), "the original headers");
    }
    assert!(letter.header("dead_reason").is_some_and(|why| why.contains("malformed")));

    // The commands that look.
    let (_, status) = command(&database, &topic, &dead, &["status"]).await;
    let aside = serde_json::json!([{"consumer": "notify", "events": 3, "orders": 2}]);
    assert_eq!(status["aside"], aside);
    let (_, life) = command(&database, &topic, &dead, &["explain", &poison]).await;
    let why = life["events"][0]["reason"].as_str().expect("a reason");
    assert!(why.contains("not allowed") && why.contains("relay inbox retry"), "{why}");
    let (_, shown) = command(&database, &topic, &dead, &["inbox", "show", &ids[0]]).await;
    assert_eq!((&shown[0]["data"], &shown[0]["cause"]), (&"{}".into(), &"refused".into()), "{shown:#}");

    // Refused again, then mended; a dry run asks for nothing.
    let retry = ["inbox", "retry", &poison, "--reason", "a test", "--wait", "60"];
    assert_eq!(command(&database, &topic, &dead, &retry).await.0, 3, "refused again");
    sqlx::raw_sql("drop trigger refuse on notifications").execute(&pool).await.expect("mended");
    let (code, planned) = command(&database, &topic, &dead, &["inbox", "retry", "--all", "--dry-run"]).await;
    assert_eq!((code, planned["stuck"].as_array().map(Vec::len)), (0, Some(2)));
    assert_eq!(rows(&pool, "select count(*) from inbox_blocked where release is not null").await, 0);
    assert_eq!(command(&database, &topic, &dead, &retry).await.0, 0, "handled");
    assert_eq!(rows(&pool, "select count(*) from notifications").await, 2);
    // What lies behind cannot be skipped; what blocks can, and then the later one is handled.
    let skip = |id| ["inbox", "skip", id, "--reason", "a test", "--wait", "60"];
    assert_eq!(command(&database, &topic, &dead, &skip(&ids[1])).await.0, 1);
    assert_eq!(command(&database, &topic, &dead, &skip(&ids[0])).await.0, 0);
    assert_eq!(rows(&pool, "select count(*) from inbox_dead").await, 0);
    assert_eq!(rows(&pool, "select count(*) from inbox where version = 2").await, 1);
    let (_, changes) = command(&database, &topic, &dead, &["changes"]).await;
    let commands: Vec<_> = changes.to_string().matches("inbox retry").map(str::to_owned).collect();
    assert_eq!(commands.len(), 2, "{changes:#}");
    assert!(changes.to_string().contains("inbox skip") && changes.to_string().contains("ada"));
}

/// `orders erase` for a customer; ends by itself.
fn erase(database: &Database, customer: &str) -> tokio::process::Child {
    let mut program = std::env::current_exe().expect("this file");
    program.pop();
    program.pop();
    tokio::process::Command::new(program.join("orders"))
        .args(["erase", "--json", "--customer", customer])
        .env_clear()
        .env("DATABASE_URL", database.url())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("orders is built")
}

/// Waits for its end; gives its exit code and what was erased.
async fn erased(child: tokio::process::Child) -> (i32, Value) {
    let output = tokio::time::timeout(SOON, child.wait_with_output()).await.expect("ends").expect("ran");
    let printed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    (output.status.code().expect("it ends by itself"), printed["erased"].clone())
}

/// Waits until somebody wants the notifications for itself and does not get them.
async fn erasure_waits(pool: &PgPool) {
    eventually("the erasure to want the notifications", SOON, async || {
        let sql = "select count(*) from pg_locks where relation = 'notifications'::regclass
                   and mode = 'ShareRowExclusiveLock' and not granted";
        (rows(pool, sql).await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notifier_that_has_read_an_address_and_commits_later_does_not_bring_it_back() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(1).await;
    let group = format!("notify-{}", topic.name());
    // The notifier stops in its transaction, with the address in its hands, until we let go of the lock.
    sqlx::raw_sql(
        "create function wait() returns trigger language plpgsql as
           $$ begin perform pg_advisory_xact_lock(42); return new; end $$;
         create trigger wait before insert on notifications for each row execute function wait()",
    )
    .execute(&pool)
    .await
    .expect("a trigger");
    let mut gate = pool.begin().await.expect("a transaction");
    sqlx::query("select pg_advisory_xact_lock(42)").execute(&mut *gate).await.expect("locked");
    let api = started(Server::orders(database.url(), &[])).await;
    let (stages, settings) = (["publish", "notify"], [("NOTIFY_GROUP", group.as_str())]);
    let (url, brokers) = (database.url(), topic.brokers());
    let _relay = started(Server::relay_stages(&stages, url, brokers, topic.name(), NO_MAIL, &settings)).await;
    order(&reqwest::Client::new(), api.url(), "key").await.expect("an order");
    eventually("the notifier to be in its transaction", SOON, async || {
        let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
        (rows(&pool, waiting).await == 1).then_some(())
    })
    .await;
    let erasure = erase(&database, "42");
    erasure_waits(&pool).await;
    gate.rollback().await.expect("let go");
    let all = serde_json::json!({"orders": 1, "answers": 1, "notifications": 1, "beingSent": 0});
    assert_eq!(erased(erasure).await, (0, all));
    assert_eq!(rows(&pool, "select count(*) from notifications where state = 'failed'").await, 1);
    for holds in [
        "select count(*) from orders where customer_email is not null",
        "select count(*) from notifications n where n::text like '%example.com%'",
        "select count(*) from idempotency_keys where convert_from(response_body, 'UTF8') like '%example.com%'",
        "select count(*) from relay_changes c where c::text like '%example.com%'",
    ] {
        assert_eq!(rows(&pool, holds).await, 0, "{holds}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_holds_up_no_notification_but_for_a_lookup_by_order() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let api = started(Server::orders(database.url(), &[])).await;
    let theirs = order(&reqwest::Client::new(), api.url(), "key").await.expect("an order");
    let notify = async |order: &str| {
        let mut transaction = pool.begin().await.expect("a transaction");
        sqlx::query(
            "insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data)
             values ($1, 'confirmation', $2::uuid, 1, 'ada@example.com', $2, '{}')",
        )
        .bind(Uuid::now_v7())
        .bind(order)
        .execute(&mut *transaction)
        .await
        .expect("inserted");
        transaction
    };
    // A transaction that stays open: the erasure cannot have the notifications, and others still get them.
    let open = notify(&theirs).await;
    let erasure = erase(&database, "42");
    erasure_waits(&pool).await;
    let others = Uuid::now_v7().to_string();
    let another = tokio::time::timeout(Duration::from_secs(10), notify(&others)).await;
    another.expect("not held up for long").commit().await.expect("committed");
    // What it does once it has them needs no other table: they are out of its reach, and it ends.
    let mut elsewhere = pool.begin().await.expect("a transaction");
    sqlx::query("lock table orders, idempotency_keys in access exclusive mode")
        .execute(&mut *elsewhere)
        .await
        .expect("locked");
    open.commit().await.expect("committed");
    let all = serde_json::json!({"orders": 1, "answers": 1, "notifications": 1, "beingSent": 0});
    assert_eq!(erased(erasure).await, (0, all));
    elsewhere.rollback().await.expect("let go");
    assert_eq!(rows(&pool, "select count(*) from notifications where recipient is null").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_while_a_mail_is_being_sent_says_so_and_a_second_one_completes_it() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(1).await;
    let group = format!("notify-{}", topic.name());
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    mailbox.set_fault("ada@example.com", Some(Fault::At(Step::Message, Wrong::Silence)));
    let api = started(Server::orders(database.url(), &[])).await;
    let settings = [("NOTIFY_GROUP", group.as_str()), ("MAIL_ON_UNKNOWN", "hold")];
    let url = mailbox.smtp_url();
    let relay = Server::relay(database.url(), topic.brokers(), topic.name(), &url, &settings);
    let mut relay = started(relay).await;
    order(&reqwest::Client::new(), api.url(), "key").await.expect("an order");
    eventually("the mail to be under way", SOON, async || {
        (rows(&pool, "select count(*) from notifications where state = 'sending'").await == 1).then_some(())
    })
    .await;
    let most = serde_json::json!({"orders": 1, "answers": 1, "notifications": 0, "beingSent": 1});
    assert_eq!(erased(erase(&database, "42")).await, (3, most));
    assert_eq!(rows(&pool, "select count(*) from notifications where recipient is not null").await, 1);
    relay.kill().expect("killed");
    sqlx::raw_sql("update notifications set state = 'unknown', holder = null, lease_until = null")
        .execute(&pool)
        .await
        .expect("as another mailer would");
    let rest = serde_json::json!({"orders": 0, "answers": 0, "notifications": 1, "beingSent": 0});
    assert_eq!(erased(erase(&database, "42")).await, (0, rest));
    assert_eq!(rows(&pool, "select count(*) from notifications where recipient is not null").await, 0);
}
