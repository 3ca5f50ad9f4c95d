//! The demo from start to end: up, one order's way, the burst, the closing table.

use std::process::ExitCode;
use std::time::Instant;

use crate::cli::Demo;
use crate::stack::Stack;
use crate::{Outcome, burst, shared, story};

pub(crate) async fn demo(options: &Demo) -> Outcome<ExitCode> {
    let end = shared::end()?;
    tokio::pin!(end);
    let interrupted = ExitCode::from(130);
    let start = Instant::now();
    if options.keep {
        demo::guard::keep()?;
        println!("data and logs stay in {}", demo::guard::directory()?.display());
    }

    let mut stack = tokio::select! {
        stack = Stack::start(options) => stack?,
        () = &mut end => return Ok(interrupted),
    };
    println!("\nup after {:.1} s", start.elapsed().as_secs_f64());
    stack.show();

    let shown = tokio::select! {
        whole = show(&mut stack, options) => whole,
        () = &mut end => {
            println!("\nstopping");
            stack.stop().await?;
            return Ok(interrupted);
        }
    };
    if !options.once && shown.is_ok() {
        invite(&stack);
        // It stays up only while its processes do.
        tokio::select! {
            died = stack.watch() => died?,
            () = &mut end => println!("\nstopping"),
        }
    }
    // What went wrong before is told rather than what goes wrong while stopping.
    let stopped = stack.stop().await;
    let whole = shown?;
    stopped?;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether everything that was promised has happened.
async fn show(stack: &mut Stack, options: &Demo) -> Outcome<bool> {
    let single = story::one_order(stack).await?;
    let tally = burst::orders(stack, options.orders, &single).await?;
    println!("\n{tally}");
    Ok(tally.is_whole())
}

fn invite(stack: &Stack) {
    let api = stack.api_url();
    println!("\nIt stays up until ctrl-c. To try:");
    println!(
        "  curl -i {api}/orders -H 'Idempotency-Key: mine-1' -H 'Content-Type: application/json' \
         -d '{{\"customerId\": 42, \"amountCents\": 2599, \"customerEmail\": \"you@example.com\"}}'"
    );
    println!("  curl -s {}/readyz", stack.relay_url());
    match stack.page() {
        Some(page) => println!("  curl -s '{page}/messages?limit=1'"),
        None => println!("  curl -s {api}/readyz"),
    }
}
