//! `relay changes`: who changed what, when and why.

use super::{CommandError, Ended, print, print_json};
use crate::config::ChangesArgs;
use crate::db::{self, changes};

pub(super) async fn list(args: &ChangesArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let changes = changes::latest(&pool, args.limit).await?;
    if args.output.json {
        print_json(&changes)?;
        return Ok(Ended::Done);
    }
    let mut text = String::new();
    for change in &changes {
        let at = change.at.format("%F %T");
        text += &format!("{:>5}  {at}  {}  relay {}\n", change.id, change.by, change.command);
        if let Some(reason) = &change.reason {
            text += &format!("       because: {reason}\n");
        }
        text += &format!("       {}\n", change.details);
    }
    if changes.is_empty() {
        text = "nothing was ever changed by command\n".to_owned();
    }
    print(&text)?;
    Ok(Ended::Done)
}
