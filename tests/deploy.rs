//! What `deploy/` hands to operators, against the programs themselves: a real Prometheus reads a running
//! API and relay by the configuration there, and knows every metric that a rule or a panel asks for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use demo::guard;
use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::services::free_port;
use demo::testing::{Database, Topic, eventually};
use serde_json::Value;
use tokio::process::{Child, Command};

const SOON: Duration = Duration::from_secs(90);
/// Made by Prometheus itself.
const BUILT_IN: [&str; 1] = ["up"];

fn deployed(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The expressions of all panels, as a browser would send them.
fn panels() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&deployed("grafana.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| target["expr"].as_str().expect("an expression").replace("$__rate_interval", "1m"))
        .collect()
}

/// The metrics that an expression names: words that are followed by `{`, `[` or the end of a selector, and
/// are neither a function, a keyword nor a label.
fn metrics(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    // Labels stand in braces and in the lists behind `by` and `on`; strings hold anything.
    let mut rest = expression.to_owned();
    for (open, close) in [("\"", "\""), ("{", "}"), ("by (", ")"), ("on (", ")"), ("[", "]")] {
        while let Some(start) = rest.find(open) {
            let end =
                rest[start + open.len()..].find(close).expect("closed") + start + open.len() + close.len();
            rest.replace_range(start..end, " ");
        }
    }
    let words = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let word_before_parenthesis =
        |word: &str| rest.contains(&format!("{word}(")) || rest.contains(&format!("{word} ("));
    for word in words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) {
        if !word_before_parenthesis(word)
            && !["and", "or", "unless", "sum", "max", "min", "count"].contains(&word)
        {
            names.insert(word.to_owned());
        }
    }
    names
}

#[test]
fn the_names_of_metrics_are_found_in_expressions() {
    let found = |expression| metrics(expression).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found(r#"sum by (le, route) (rate(a_total{status=~"5..|by (x)"}[5m])) / max(b) > 0.5"#),
        ["a_total", "b"]
    );
    assert_eq!(found(r#"max(c{stage="x"} and on (instance) d == 1) == 0 or absent(e)"#), ["c", "d", "e"]);
}

struct Prometheus {
    url: String,
    /// Killed when dropped.
    _process: Child,
}

impl Prometheus {
    /// With the configuration of `deploy/`, reading these two instead of the usual addresses, and often.
    fn start(api: &Server, relay: &Server) -> Self {
        let address = format!("127.0.0.1:{}", free_port().expect("a port"));
        let folder = guard::directory().expect("the run's folder").join(format!("prometheus-{address}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        let of = |server: &Server| server.url().replace("http://", "");
        let config = deployed("prometheus.yml")
            .replace("127.0.0.1:8080", &of(api))
            .replace("127.0.0.1:9464", &of(relay))
            .replace("15s", "1s");
        assert!(config.contains(&of(api)) && config.contains(&of(relay)), "{config}");
        std::fs::write(folder.join("prometheus.yml"), config).expect("written");
        std::fs::write(folder.join("alerts.yml"), deployed("alerts.yml")).expect("written");
        let process = Command::new(program("prometheus"))
            .arg(format!("--web.listen-address={address}"))
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"])
            .current_dir(&folder)
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Prometheus starts");
        Self { url: format!("http://{address}"), _process: process }
    }

    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let url =
            reqwest::Url::parse_with_params(&format!("{}/api/v1/{path}", self.url), query).expect("a URL");
        let answer: Value = reqwest::get(url).await.ok()?.json().await.ok()?;
        (answer["status"] == "success").then(|| answer["data"].clone())
    }
}

/// Where a program of Prometheus lies; `make install` puts it there.
#[allow(clippy::disallowed_methods, reason = "the search path is no setting")]
fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").expect("a search path");
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run `demo/install test`"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_that_a_rule_or_a_panel_asks_for_is_one_that_the_programs_show() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let mailbox = Mailbox::start(free_port().expect("a port")).await.expect("a mailbox");
    let mut api = Server::orders(database.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let mut relay = Server::relay(database.url(), topic.brokers(), topic.name(), &mailbox.smtp_url(), &[])
        .expect("the relay starts");
    relay.ready(SOON).await.expect("ready");
    let order =
        reqwest::Client::new().post(format!("{}/orders", api.url())).header("idempotency-key", "one").json(
            &serde_json::json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"}),
        );
    assert_eq!(order.send().await.expect("answered").status(), 201);
    mailbox.wait_for(1, SOON).await.expect("a mail");
    let prometheus = Prometheus::start(&api, &relay);

    let rules = eventually("Prometheus to have read its rules", SOON, async || {
        let data = prometheus.ask("rules", &[("type", "alert")]).await?;
        let groups = data["groups"].as_array()?.iter();
        let rules = groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let rules: Vec<(String, String)> = rules
            .map(|rule| Some((rule["name"].as_str()?.to_owned(), rule["query"].as_str()?.to_owned())))
            .collect::<Option<_>>()?;
        (!rules.is_empty()).then_some(rules)
    })
    .await;
    let expressions: Vec<String> = rules.iter().map(|(_, query)| query.clone()).chain(panels()).collect();
    let asked: BTreeSet<String> = expressions.iter().flat_map(|expression| metrics(expression)).collect();
    assert!(asked.len() > 30, "{asked:?}");
    for name in asked.iter().filter(|name| !BUILT_IN.contains(&name.as_str())) {
        eventually(&format!("{name} to be there"), SOON, async || {
            let data = prometheus.ask("query", &[("query", &format!("count({name})"))]).await?;
            (!data["result"].as_array()?.is_empty()).then_some(())
        })
        .await;
    }
    for expression in &expressions {
        assert!(prometheus.ask("query", &[("query", expression)]).await.is_some(), "{expression} is refused");
    }
    eventually("no alert, for nothing is wrong", SOON, async || {
        (prometheus.ask("alerts", &[]).await?["alerts"] == serde_json::json!([])).then_some(())
    })
    .await;

    // The page is the list of what is documented, too.
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/watching.md")).expect("docs");
    for (alert, _) in &rules {
        assert!(text.contains(&format!("`{alert}`")), "docs/watching.md says nothing of {alert}");
    }
    for server in [&api, &relay] {
        let page = reqwest::get(format!("{}/metrics", server.url())).await.expect("answered");
        let page = page.text().await.expect("text");
        for name in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
            assert!(text.contains(&format!("`{name}")), "docs/watching.md says nothing of {name}");
        }
    }
}

#[test]
fn the_rules_do_what_their_tests_say() {
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]] {
        let done = std::process::Command::new(program("promtool"))
            .args(arguments)
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy"))
            .output()
            .expect("promtool runs");
        let said = [done.stdout, done.stderr].concat();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&said));
    }
    let (rules, tests) = (deployed("alerts.yml"), deployed("alerts_test.yml"));
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert_eq!(
            tests.matches(&format!("alertname: {alert}\n")).count(),
            2,
            "{alert} comes once and stays away once"
        );
    }
}
