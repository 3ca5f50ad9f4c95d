//! An outbox table of another program, in the shape that Debezium's outbox event router reads: how its
//! rows become messages, and what the table must be like. Pure: no I/O.
//!
//! The defaults are the router's own (`io.debezium.transforms.outbox.EventRouter`): the topic is made of
//! the aggregate type, the key is the aggregate id, the value is the payload as it is, and the
//! header `id` is the event's id.

use std::fmt;
use std::str::FromStr;

/// What stands for the aggregate type in a topic's name.
const AGGREGATE_TYPE: &str = "{aggregatetype}";
/// The longest name of a Kafka topic.
const LONGEST_TOPIC: usize = 249;

/// How a foreign outbox table is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignOutbox {
    /// The table, as it would be written in SQL.
    pub table: String,
    /// Where its events go.
    pub topic: TopicTemplate,
    /// Which columns become headers.
    pub headers: HeaderColumns,
}

/// A topic's name in which `{aggregatetype}` stands for the aggregate type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate(String);

impl TopicTemplate {
    /// The topic of an aggregate type. It may be no name that Kafka takes: see [`is_topic`].
    #[must_use]
    pub(crate) fn topic(&self, aggregate_type: &str) -> String {
        self.0.replace(AGGREGATE_TYPE, aggregate_type)
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicTemplate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let template = Self(text.to_owned());
        if is_topic(&template.topic("x")) {
            Ok(template)
        } else {
            Err(format!(
                "it must be a topic's name with {AGGREGATE_TYPE} in it, outbox.event.{AGGREGATE_TYPE} for example"
            ))
        }
    }
}

/// Whether Kafka takes a topic of this name: 1 to 249 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`.
#[must_use]
pub(crate) fn is_topic(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=LONGEST_TOPIC).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(allowed)
}

/// Columns that become headers, written `column:header,column`; a header without a name has its column's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderColumns(Vec<HeaderColumn>);

/// A column that becomes a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderColumn {
    /// The column.
    pub column: String,
    /// The header.
    pub header: String,
}

impl HeaderColumns {
    /// One by one.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &HeaderColumn> {
        self.0.iter()
    }
}

impl fmt::Display for HeaderColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.iter().map(|pair| format!("{}:{}", pair.column, pair.header)).collect();
        f.write_str(&pairs.join(","))
    }
}

impl FromStr for HeaderColumns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut pairs: Vec<HeaderColumn> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (column, header) = part.split_once(':').unwrap_or((part, part));
            if column.is_empty() || header.is_empty() || header.contains(':') {
                return Err("it must look like column:header,column:header".to_owned());
            }
            if header == "id" || pairs.iter().any(|pair| pair.header == header) {
                return Err(format!("there is one header `{header}` already"));
            }
            pairs.push(HeaderColumn { column: column.to_owned(), header: header.to_owned() });
        }
        Ok(Self(pairs))
    }
}

/// A table as PostgreSQL's catalog describes it.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Schema and name, quoted where they need it.
    pub name: String,
    /// An ordinary table: no view, no foreign server, no partitions or children.
    pub is_ordinary: bool,
    /// Whether its rows survive a crash.
    pub is_logged: bool,
    /// Whether policies hide rows from the role that asks.
    pub hides_rows: bool,
    /// Whether the role that asks may read it.
    pub is_readable: bool,
    /// Its columns.
    pub columns: Vec<Column>,
    /// The sequence that belongs to the column `seq`.
    pub sequence: Option<Sequence>,
    /// Whether an index makes `seq` unique.
    pub has_unique_seq: bool,
}

/// A column.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Its name.
    pub name: String,
    /// Its name, quoted where it needs it.
    pub quoted: String,
    /// Its type without length, or the type below its domain.
    pub kind: String,
    /// Whether it refuses null.
    pub not_null: bool,
}

/// Where the numbers of `seq` come from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    /// How many numbers a session draws at once.
    pub cache: i64,
    /// The step.
    pub increment: i64,
    /// Whether it begins again at its end.
    pub cycles: bool,
}

/// What a column of the shape may be.
struct Expected {
    name: &'static str,
    kinds: &'static [&'static str],
    not_null: bool,
}

const IDENTIFIERS: &[&str] =
    &["uuid", "text", "character varying", "character", "smallint", "integer", "bigint"];
const TEXTS: &[&str] = &["text", "character varying", "character"];
const PAYLOADS: &[&str] = &["json", "jsonb", "text", "character varying", "bytea"];

const SHAPE: [Expected; 5] = [
    Expected { name: "id", kinds: IDENTIFIERS, not_null: true },
    Expected { name: "aggregatetype", kinds: TEXTS, not_null: true },
    Expected { name: "aggregateid", kinds: IDENTIFIERS, not_null: true },
    Expected { name: "type", kinds: TEXTS, not_null: false },
    Expected { name: "payload", kinds: PAYLOADS, not_null: false },
];

impl Table {
    /// A column by its name.
    #[must_use]
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Why the table is not in the shape, and what would mend it; nothing when it is.
    #[must_use]
    pub(crate) fn misfits(&self, headers: &HeaderColumns) -> Vec<String> {
        let mut misfits = Vec::new();
        if self.name.chars().any(char::is_control) {
            misfits.push("the table's name has a control character in it".to_owned());
        }
        if !self.is_ordinary {
            misfits.push(format!(
                "{} is a view, a foreign table, or has partitions or children: who writes to it cannot be told from the lock on one table",
                self.name
            ));
        }
        if !self.is_logged {
            misfits.push(format!(
                "{name} is unlogged, a crash of PostgreSQL empties it: alter table {name} set logged",
                name = self.name
            ));
        }
        if self.hides_rows {
            misfits.push(format!(
                "row security hides rows of {} from this role: give the role bypassrls",
                self.name
            ));
        }
        for expected in &SHAPE {
            misfits.extend(self.misfit(expected));
        }
        for pair in headers.iter().filter(|pair| self.column(&pair.column).is_none()) {
            misfits
                .push(format!("there is no column `{}` to become the header `{}`", pair.column, pair.header));
        }
        misfits
    }

    fn misfit(&self, expected: &Expected) -> Option<String> {
        let Expected { name, kinds, not_null } = expected;
        let Some(column) = self.column(name) else {
            return Some(format!("there is no column `{name}` ({})", kinds.join(", ")));
        };
        if !kinds.contains(&column.kind.as_str()) {
            return Some(format!("`{name}` is {}; it may be {}", column.kind, kinds.join(", ")));
        }
        (*not_null && !column.not_null).then(|| {
            format!("`{name}` may be null: alter table {} alter column {name} set not null", self.name)
        })
    }

    /// Why the numbers of the table's rows cannot be read; nothing when they can.
    #[must_use]
    pub(crate) fn misnumbered(&self) -> Option<String> {
        let Some(seq) = self.column("seq") else {
            return Some("there is no column `seq` yet".to_owned());
        };
        if seq.kind != "bigint" {
            return Some(format!("`seq` is {}; it must be bigint", seq.kind));
        }
        match self.sequence {
            None => return Some("no sequence belongs to `seq`: it must be an identity column, or have a default of an owned sequence".to_owned()),
            Some(Sequence { cache: 1, increment: 1, cycles: false }) => {}
            // Numbers that sessions keep for later do not follow the order of the locks.
            Some(_) => return Some("the sequence of `seq` must have cache 1 and increment 1 and not cycle".to_owned()),
        }
        (!self.has_unique_seq).then(|| {
            "no valid unique index on `seq` alone: every read would search the whole table".to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_gives_the_topic_of_an_aggregate_type_and_one_that_never_can_is_refused() {
        let template: TopicTemplate = "outbox.event.{aggregatetype}".parse().expect("a template");
        assert_eq!(template.topic("order"), "outbox.event.order");
        assert!(!is_topic(&template.topic("two words")));
        for wrong in ["", "a b", "..", "a{type}"] {
            assert!(wrong.parse::<TopicTemplate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn columns_become_headers_of_another_name_or_of_their_own_and_none_twice() {
        let headers: HeaderColumns = "type:eventType, traceid".parse().expect("headers");
        assert_eq!(headers.to_string(), "type:eventType,traceid:traceid");
        for wrong in ["type:id", "a:x,b:x", ":x", "a:", "type:header:eventType"] {
            assert!(wrong.parse::<HeaderColumns>().is_err(), "{wrong}");
        }
    }

    fn table() -> Table {
        let column = |name: &str, kind: &str, not_null| Column {
            name: name.to_owned(),
            quoted: name.to_owned(),
            kind: kind.to_owned(),
            not_null,
        };
        Table {
            name: "public.outboxevent".to_owned(),
            is_ordinary: true,
            is_logged: true,
            hides_rows: false,
            is_readable: true,
            columns: vec![
                column("id", "uuid", true),
                column("aggregatetype", "character varying", true),
                column("aggregateid", "character varying", true),
                column("type", "character varying", true),
                column("payload", "jsonb", false),
                column("seq", "bigint", true),
            ],
            sequence: Some(Sequence { cache: 1, increment: 1, cycles: false }),
            has_unique_seq: true,
        }
    }

    #[test]
    fn a_table_in_the_shape_has_no_misfit_and_each_deviation_is_named() {
        let headers: HeaderColumns = "type:eventType".parse().expect("headers");
        assert_eq!(table().misfits(&headers), Vec::<String>::new());
        assert_eq!(table().misnumbered(), None);

        let changed = |change: fn(&mut Table)| {
            let mut table = table();
            change(&mut table);
            let mut said = table.misfits(&headers);
            said.extend(table.misnumbered());
            assert_eq!(said.len(), 1, "{said:?}");
            said.remove(0)
        };
        assert!(changed(|table| table.is_ordinary = false).contains("partitions"));
        assert!(changed(|table| table.is_logged = false).contains("set logged"));
        assert!(changed(|table| table.hides_rows = true).contains("bypassrls"));
        assert!(changed(|table| table.columns[0].kind = "point".to_owned()).contains("`id` is point"));
        assert!(changed(|table| table.columns[2].not_null = false).contains("set not null"));
        assert!(changed(|table| drop(table.columns.remove(4))).contains("no column `payload`"));
        assert!(changed(|table| table.columns[5].kind = "integer".to_owned()).contains("must be bigint"));
        assert!(changed(|table| table.sequence = None).contains("no sequence"));
        let cached = Sequence { cache: 20, increment: 1, cycles: false };
        let mut table = table();
        table.sequence = Some(cached);
        assert!(table.misnumbered().is_some_and(|said| said.contains("cache 1")));
        table.sequence = None;
        table.columns.truncate(5);
        assert!(table.misnumbered().is_some_and(|said| said.contains("no column `seq`")));
    }
}
