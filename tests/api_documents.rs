//! What the documentation says, held against the program.

use std::process::Stdio;
use std::time::Duration;

use demo::programs::Server;
use demo::testing::Database;
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::test]
async fn the_example_client_places_its_order_though_the_api_is_away_at_first() {
    let database = Database::create().await;
    let mut api = Server::orders(database.url(), &[]).expect("the API starts");
    api.ready(Duration::from_secs(30)).await.expect("ready");
    api.kill().expect("killed");

    let example =
        std::path::Path::new(env!("CARGO_BIN_EXE_orders")).with_file_name("examples").join("client");
    let mut client = tokio::process::Command::new(example)
        .args([api.url(), "2599"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example is built");
    let mut complaints = BufReader::new(client.stderr.take().expect("its complaints")).lines();
    let complaint = complaints.next_line().await.expect("it complains").expect("before it ends");
    assert!(complaint.starts_with("attempt 1 failed"), "{complaint}");
    api.start_again().expect("started again");
    let output = client.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stdout).expect("UTF-8");

    let placed: String = sqlx::query_scalar("select order_id || ' ' || status from orders")
        .fetch_one(&database.pool().await)
        .await
        .expect("one order");
    assert_eq!(told.trim(), placed);
}
