//! `zerotap vbd top`: the disks that do most, live in the terminal.

use super::super::context::{Context, json, write};
use super::super::failure::Failure;
use super::super::terminal::Terminal;
use super::super::{duration, size, table};
use super::rates::{Rates, between};
use clap::{Args, ValueEnum};
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use zerotap_rpc_schema::admin::VbdStat;
use zerotap_rpc_schema::table::VbdStatAll;

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// How often, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=3600))]
    interval: u16,
    /// Show one interval and end
    #[arg(long)]
    once: bool,
    /// What comes first
    #[arg(long, value_enum, default_value_t = Key::Iops)]
    sort: Key,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Key {
    /// Operations a second
    Iops,
    /// Bytes a second
    Bytes,
    /// The 99th percentile of latency
    Latency,
    /// Requests in flight
    InFlight,
}

struct Look {
    stats: Vec<VbdStat>,
    at: Instant,
}

async fn look(context: &Context) -> Result<Look, Failure> {
    Ok(Look { stats: context.ask::<VbdStatAll>().await?, at: Instant::now() })
}

pub(super) async fn run(args: &Top, context: &Context) -> Result<(), Failure> {
    let mut before = look(context).await?;
    // A terminal is not taken over by what is one shot, or for a program.
    let terminal = if args.once || context.json { None } else { Terminal::open() };
    let mut keys = terminal.as_ref().map_or_else(|| mpsc::channel(1).1, Terminal::keys);
    let mut terminate = signal(SignalKind::terminate())
        .map_err(|error| Failure::plain(format!("cannot wait for signals: {error}")))?;
    if let Some(terminal) = &terminal {
        terminal.draw("measuring ...");
    }
    loop {
        let pause = tokio::time::sleep(Duration::from_secs(args.interval.into()));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(key) = keys.recv() => if key == b'q' { return Ok(()) },
                _ = tokio::signal::ctrl_c() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            }
        }
        let now = look(context).await?;
        let seconds = (now.at - before.at).as_secs_f64();
        let mut rates = between(&before.stats, &now.stats, seconds);
        sort(&mut rates, args.sort);
        match &terminal {
            Some(terminal) => terminal.draw(&screen(&rates)),
            None if context.json && args.once => write(&json(&rates))?,
            None if context.json => {
                let line = serde_json::to_string(&rates).expect("wire types have string keys");
                write(&(line + "\n"))?;
            }
            None => write(&render(&rates))?,
        }
        if args.once {
            return Ok(());
        }
        before = now;
    }
}

fn sort(rates: &mut [Rates], key: Key) {
    #[expect(clippy::cast_precision_loss, reason = "an order needs no more")]
    let value = |it: &Rates| match key {
        Key::Iops => it.iops(),
        Key::Bytes => it.bytes(),
        Key::Latency => it.p99_us as f64,
        Key::InFlight => it.in_flight.into(),
    };
    // Equal ones stay in the order of domains and devices.
    rates.sort_by(|a, b| value(b).total_cmp(&value(a)));
}

fn screen(rates: &[Rates]) -> String {
    let iops: f64 = rates.iter().map(Rates::iops).sum();
    let bytes: f64 = rates.iter().map(Rates::bytes).sum();
    let (disks, rate) = (rates.len(), size::rate(bytes));
    let head = format!("zerotap: {disks} disks, {iops:.0} IOPS, {rate}   (q quits)\n\n");
    head + &render(rates)
}

fn render(rates: &[Rates]) -> String {
    let latency = |it: &Rates, us: u64| {
        if it.iops() > 0.0 { duration::latency(us) } else { String::new() }
    };
    let row = |it: &Rates| {
        vec![
            it.domid.to_string(),
            it.device.clone(),
            format!("{:.0}", it.reads_per_second),
            format!("{:.0}", it.writes_per_second),
            format!("{:.0}", it.flushes_per_second),
            size::rate(it.read_bytes_per_second),
            size::rate(it.write_bytes_per_second),
            latency(it, it.p50_us),
            latency(it, it.p99_us),
            it.in_flight.to_string(),
            format!("{:.0}%", it.copied * 100.0),
            if it.age_ms > 0 { "worker silent".to_owned() } else { it.state.clone() },
            it.vdi.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = rates.iter().map(row).collect();
    let header = [
        "DOMID",
        "DEVICE",
        "READ/s",
        "WRITE/s",
        "FLUSH/s",
        "READ",
        "WRITE",
        "P50",
        "P99",
        "IN FLIGHT",
        "COPIED",
        "STATE",
        "VDI",
    ];
    table::columns(&header, &[0, 2, 3, 4, 5, 6, 7, 8, 9, 10], &rows)
}

#[cfg(test)]
mod tests {
    use super::super::show::tests::stat;
    use super::*;

    fn rates(domid: u16, reads: u64) -> Rates {
        let mut after = stat();
        after.counters.reads += reads;
        after.read_latency.record(1000);
        let mut rates = between(&[stat()], &[after], 1.0);
        rates[0].domid = domid;
        rates.remove(0)
    }

    #[test]
    fn who_does_most_is_first() {
        let mut all = vec![rates(1, 0), rates(2, 70), rates(3, 700)];
        sort(&mut all, Key::Iops);
        assert_eq!(all.iter().map(|it| it.domid).collect::<Vec<_>>(), [3, 2, 1]);
        let text = screen(&all);
        assert!(text.starts_with("zerotap: 3 disks, 770 IOPS, 0 B/s   (q quits)\n\n"), "{text}");
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].starts_with("DOMID  DEVICE  READ/s  WRITE/s"), "{text}");
        assert!(lines[1].trim_start().starts_with("3  xvda       700        0"), "{text}");
        assert!(lines[3].contains("connected"), "{text}");
    }
}
