//! What a client can rely on when the database, the network or the API itself breaks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use demo::testing::{Database, eventually};
use futures_util::future::join_all;
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, Executor, PgPool, Postgres, Transaction};
use support::proxy::{Mode, Proxy};
use support::{Api, ORDER, Process, create, rows, until};
use tokio::task::JoinSet;

#[tokio::test]
async fn a_commit_whose_answer_was_lost_is_recognised_as_our_own() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    assert_eq!(api.create("warm", ORDER).await.status, 201);
    proxy.set(Mode::Cut { marker: "cut-me".into(), then: Box::new(Mode::Pass) });
    let answer = api.create("cut-me", ORDER).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert!(!answer.replayed(), "it is the first answer");
    assert_eq!(rows(&database.pool().await).await, (2, 2, 2));
    let again = api.create("cut-me", ORDER).await;
    assert!(again.replayed());
    assert_eq!(again.body, answer.body);
    api.stop().await;
}

#[tokio::test]
async fn a_commit_whose_outcome_stays_unknown_says_so_and_the_retry_replays() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    assert_eq!(api.create("warm", ORDER).await.status, 201);
    proxy.set(Mode::Cut { marker: "cut-me".into(), then: Box::new(Mode::Refuse) });
    let answer = api.create("cut-me", ORDER).await;
    answer.is_problem(503, "outcome_unknown");
    assert_eq!(answer.json()["retryable"], true);
    // Nothing of this one was ever sent.
    api.create("not-sent", ORDER).await.is_problem(503, "database_unavailable");
    proxy.set(Mode::Pass);
    let again = api.create("cut-me", ORDER).await;
    assert_eq!((again.status, again.replayed()), (201, true), "it had been committed: {again:?}");
    assert_eq!(rows(&database.pool().await).await, (2, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_whole_batch_whose_answer_was_lost_is_recognised() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    assert_eq!(api.create("warm", ORDER).await.status, 201);
    proxy.set(Mode::Cut { marker: "cut-".into(), then: Box::new(Mode::Pass) });
    let keys: Vec<_> = (0..40).map(|i| format!("cut-{i}")).collect();
    let answers = join_all(keys.iter().map(|key| api.create(key, ORDER))).await;
    assert!(answers.iter().all(|a| a.status == 201 && !a.replayed()), "{answers:?}");
    assert_eq!(rows(&database.pool().await).await, (41, 41, 41));
    api.stop().await;
}

#[tokio::test]
async fn a_cancellation_whose_answer_was_lost_happens_once() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    // COMMIT is the statement whose answer matters.
    proxy.set(Mode::Cut { marker: "COMMIT".into(), then: Box::new(Mode::Pass) });
    let answer = api.cancel(&order, "c-1").await;
    assert_eq!((answer.status, answer.json()["version"].as_i64()), (200, Some(2)), "{answer:?}");
    assert_eq!(api.cancel(&order, "c-1").await.body, answer.body);
    assert_eq!(rows(&database.pool().await).await, (1, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_costs_a_503_and_nothing_else() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    proxy.set(Mode::Refuse);
    let api = Api::start(&proxy.url()).await;
    assert_eq!((api.get("/healthz").await.status, api.get("/readyz").await.status), (200, 503));
    let answer = api.create("k-1", ORDER).await;
    answer.is_problem(503, "database_unavailable");
    assert_eq!((answer.json()["retryable"].as_bool(), answer.header("retry-after")), (Some(true), Some("1")));
    api.get("/orders").await.is_problem(503, "database_unavailable");
    proxy.set(Mode::Pass);
    assert_eq!(api.create("k-1", ORDER).await.status, 201);
    assert_eq!(api.get("/readyz").await.status, 200);
    api.stop().await;
}

#[tokio::test]
async fn a_transaction_that_fails_leaves_no_order_no_key_and_no_event() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    pool.execute("alter table outbox add constraint outbox_full check (payload->>'amountCents' <> '13')")
        .await
        .unwrap();
    let bad = r#"{"customerId": 1, "amountCents": 13}"#;
    let answer = api.create("bad", bad).await;
    answer.is_problem(500, "internal_error");
    assert!(!String::from_utf8_lossy(&answer.body).contains("outbox"), "nothing of the inside is shown");
    assert_eq!(rows(&pool).await, (0, 0, 0));

    // In company, the bad ones fail alone.
    let bodies: Vec<_> = (0..40).map(|i| if i % 10 == 0 { bad } else { ORDER }).collect();
    let keys: Vec<_> = (0..40).map(|i| format!("k-{i}")).collect();
    let answers = join_all(keys.iter().zip(&bodies).map(|(key, body)| api.create(key, body))).await;
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, if i % 10 == 0 { 500 } else { 201 }, "{answer:?}");
    }
    assert_eq!(rows(&pool).await, (36, 36, 36));

    pool.execute("alter table outbox drop constraint outbox_full").await.unwrap();
    assert_eq!(api.create("bad", bad).await.status, 201, "the retry runs");
    api.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_loses_nothing_it_accepted() {
    let database = Database::create().await;
    let (api, pool) = (Api::start_with_queue(database.url(), 2).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("lock table orders in access exclusive mode").await.unwrap();
    let keys: Vec<_> = (0..30).map(|i| format!("k-{i}")).collect();
    let refused = Arc::new(AtomicUsize::new(0));
    let requests = join_all(keys.iter().map(|key| async {
        let answer = api.create(key, ORDER).await;
        if answer.status == 503 {
            refused.fetch_add(1, Ordering::SeqCst);
        }
        answer
    }));
    let release = async {
        while refused.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        foreign.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(requests, release);
    let (accepted, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|a| a.status == 201);
    for answer in &refused {
        answer.is_problem(503, "overloaded");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert!(!accepted.is_empty() && !refused.is_empty());
    let made = accepted.len() as i64;
    assert_eq!(rows(&pool).await, (made, made, made));
    api.stop().await;
}

#[tokio::test]
async fn an_api_killed_under_load_has_every_order_that_a_client_saw() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut process = Process::start(&database).await;
    let address = process.address;
    let mut seen: HashMap<String, String> = HashMap::new();
    for round in 0..3 {
        let mut clients = JoinSet::new();
        let answered = Arc::new(AtomicUsize::new(0));
        for worker in 0..24 {
            let answered = answered.clone();
            clients.spawn(async move {
                let client = reqwest::Client::new();
                let mut sent = Vec::new();
                for i in 0.. {
                    let key = format!("r{round}-w{worker}-{i}");
                    match create(&client, address, &key, ORDER).await {
                        Ok(answer) if answer.status == 201 => {
                            answered.fetch_add(1, Ordering::SeqCst);
                            sent.push((key, Some(answer.order_id())));
                        }
                        _ => {
                            sent.push((key, None));
                            break;
                        }
                    }
                }
                sent
            });
        }
        while answered.load(Ordering::SeqCst) < 300 {
            tokio::task::yield_now().await;
        }
        process.kill().await;
        let sent: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
        process = Process::start_at(&database, address).await;

        let client = reqwest::Client::new();
        for (key, order) in sent {
            let retry = create(&client, address, &key, ORDER).await.unwrap();
            assert_eq!(retry.status, 201, "{retry:?}");
            if let Some(order) = order {
                assert_eq!(retry.order_id(), order, "the retry gives the order that was seen");
                assert!(retry.replayed());
            }
            seen.insert(key, retry.order_id());
        }
    }
    let expected = seen.len() as i64;
    assert_eq!(rows(&pool).await, (expected, expected, expected));
    let torn: i64 = sqlx::query_scalar(
        "select count(*) from orders o
           full join idempotency_keys i using (order_id)
           full join outbox e on e.aggregate_id = o.order_id
          where o.order_id is null or i.order_id is null or e.aggregate_id is null",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(torn, 0);
}

#[tokio::test]
async fn a_graceful_stop_finishes_what_was_accepted() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut process = Process::start(&database).await;
    let address = process.address;
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("lock table orders in access exclusive mode").await.unwrap();
    let mut clients = JoinSet::new();
    for i in 0..20 {
        clients
            .spawn(async move { create(&reqwest::Client::new(), address, &format!("k-{i}"), ORDER).await });
    }
    until(
        &pool,
        "select exists (select from pg_stat_activity where datname = current_database()
                   and wait_event_type = 'Lock' and query like '%claimed%')",
    )
    .await;
    let stop = process.terminate();
    let release = async {
        // Refused connections are the sign that the stop has begun.
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        foreign.rollback().await.unwrap();
    };
    let (code, ()) = tokio::join!(stop, release);
    assert_eq!(code, Some(0));
    let mut created = 0;
    for answer in clients.join_all().await.into_iter().flatten() {
        assert_eq!(answer.status, 201);
        created += 1;
    }
    assert!(created >= 1);
    assert_eq!(rows(&pool).await, (created, created, created));
}

#[tokio::test]
async fn a_commit_rings_the_bell_and_a_lost_bell_hurts_nobody() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let mut listener = PgListener::connect(database.url()).await.unwrap();
    listener.listen(events::OUTBOX_CHANNEL).await.unwrap();
    let order = api.create("k-1", ORDER).await.order_id();
    assert_eq!(listener.recv().await.unwrap().payload(), "");
    api.cancel(&order, "c-1").await;
    listener.recv().await.unwrap();

    let ended: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
          where datname = current_database() and query like '%pg_notify%' and pid <> pg_backend_pid()",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(ended, 1);
    // The ring that finds the connection dead is lost; a later one gets through.
    for i in 0.. {
        assert_eq!(api.create(&format!("after-{i}"), ORDER).await.status, 201);
        let rung = tokio::time::timeout(Duration::from_millis(200), listener.recv()).await;
        if rung.is_ok() {
            break;
        }
        assert!(i < 50, "the bell never came back");
    }
    api.stop().await;
}

#[tokio::test]
async fn a_broken_writer_connection_is_replaced_without_an_error() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    for i in 0..5 {
        assert_eq!(api.create(&format!("k-{i}"), ORDER).await.status, 201);
        pool.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity
              where datname = current_database() and application_name = 'orders'",
        )
        .await
        .unwrap();
    }
    assert_eq!(api.create("last", ORDER).await.status, 201);
    assert_eq!(rows(&pool).await, (6, 6, 6));
    api.stop().await;
}

/// Makes whoever writes an order wait for advisory lock 1, once somebody waits for them: the two
/// locks of a deadlock, in the order that makes the API its victim.
const DEADLOCK_TRAP: &str = "
    create function trap() returns trigger language plpgsql as $$
    begin
      while not pg_try_advisory_xact_lock(1) loop
        if exists (select from pg_locks where not granted and locktype = 'transactionid') then
          perform pg_advisory_xact_lock(1);
          return new;
        end if;
        perform pg_sleep(0.002);
      end loop;
      return new;
    end $$;
    create trigger trap before insert or update on orders for each row execute function trap();";

/// Sooner than the lock timeouts, which would end the wait before the deadlock is found.
const FIND_DEADLOCKS_SOON: &str = "do $$ begin
    execute format('alter database %I set deadlock_timeout = %L', current_database(), '10ms');
    end $$";

async fn hold_the_lock(pool: &PgPool) -> Transaction<'static, Postgres> {
    let mut foreign = pool.begin().await.unwrap();
    // The victim is who finds the deadlock; this session does not look.
    foreign.execute("set local deadlock_timeout = '1h'; select pg_advisory_xact_lock(1)").await.unwrap();
    foreign
}

/// Wants the key that the API has, when the API wants the lock; lets go when the API was the victim.
async fn deadlock(pool: &PgPool, mut foreign: Transaction<'static, Postgres>, key: &str) {
    until(
        pool,
        "select exists (select from pg_stat_activity where datname = current_database()
                   and application_name = 'orders' and wait_event = 'PgSleep')",
    )
    .await;
    let claim = format!(
        "insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status,
                                       response_headers, response_body, expires_at)
         values ('anonymous', '{key}', 'orders.create', sha256('x'), gen_random_uuid(), 201, '{{}}', '',
                 now() + interval '1 h')"
    );
    foreign.execute(AssertSqlSafe(claim)).await.unwrap();
    foreign.rollback().await.unwrap();
}

#[tokio::test]
async fn the_victim_of_a_deadlock_is_run_again() {
    let database = Database::create().await;
    let pool = database.pool().await;
    pool.execute(FIND_DEADLOCKS_SOON).await.unwrap();
    let api = Api::start(database.url()).await;
    let order = api.create("k-0", ORDER).await.order_id();
    pool.execute(DEADLOCK_TRAP).await.unwrap();

    let foreign = hold_the_lock(&pool).await;
    let (created, ()) = tokio::join!(api.create("k-1", ORDER), deadlock(&pool, foreign, "k-1"));
    assert_eq!((created.status, created.replayed()), (201, false), "{created:?}");
    let foreign = hold_the_lock(&pool).await;
    let (cancelled, ()) = tokio::join!(api.cancel(&order, "c-1"), deadlock(&pool, foreign, "c-1"));
    assert_eq!(cancelled.status, 200, "{cancelled:?}");

    assert_eq!(rows(&pool).await, (2, 3, 3));

    // It was a deadlock that ended the first runs. A session reports it with a later statement.
    let mut later = 0;
    eventually("both deadlocks to be reported", Duration::from_secs(20), async || {
        later += 1;
        api.create(&format!("later-{later}"), ORDER).await;
        api.cancel(&events::OrderId::new().to_string(), &format!("later-c-{later}")).await;
        let reported = "select deadlocks >= 2 from pg_stat_database where datname = current_database()";
        sqlx::query_scalar::<_, bool>(reported).fetch_one(&pool).await.unwrap().then_some(())
    })
    .await;
    api.stop().await;
}
