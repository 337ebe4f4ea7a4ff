//! Invalid settings, and the documents that list all settings.

use std::net::TcpListener;

use tempfile::TempDir;

use crate::process::{Env, free_port, output};

/// Runs `serve` with these settings: its exit code and output.
fn serve(settings: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = TempDir::new().unwrap();
    let mut env: Env = vec![
        ("SECKILL_LISTEN".into(), format!("127.0.0.1:{}", free_port())),
        ("SECKILL_OPS_LISTEN".into(), format!("127.0.0.1:{}", free_port())),
        ("RUST_LOG".into(), "error".into()),
    ];
    env.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let ended = output("seckill", &env, &["serve"], folder.path());
    (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
}

/// Settings, the expected exit code, and what the error must name.
type Case<'a> = (&'a [(&'a str, &'a str)], i32, &'a [&'a str]);

#[test]
fn one_line_that_names_the_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let folder = TempDir::new().unwrap();
    let foreign = folder.path().join("notes.txt");
    std::fs::write(&foreign, "not a database").unwrap();
    let foreign = foreign.display().to_string();
    let cases: [Case; 16] = [
        (&[("SECKILL_STOCK", "-3")], 64, &["SECKILL_STOCK=-3", "whole number"]),
        (&[("SECKILL_STOCK", "many")], 64, &["SECKILL_STOCK=many"]),
        (&[("SECKILL_OPENS_AT", "tomorrow")], 64, &["SECKILL_OPENS_AT=tomorrow", "+30s"]),
        (&[("SECKILL_OPENS_AT", "+9s"), ("SECKILL_CLOSES_AT", "+8s")], 64, &["SECKILL_CLOSES_AT"]),
        (&[("SECKILL_DRAIN", "soon")], 64, &["SECKILL_DRAIN=soon", "5s"]),
        (&[("SECKILL_DRAIN", "2h")], 64, &["SECKILL_DRAIN=2h"]),
        (&[("SECKILL_ALLOWED_ORIGINS", "shop.example/page")], 64, &["SECKILL_ALLOWED_ORIGINS", "https://"]),
        (&[("SECKILL_LISTEN", "everywhere")], 64, &["SECKILL_LISTEN=everywhere"]),
        (&[("SECKILL_KAFKA_PARTITIONS", "0")], 64, &["SECKILL_KAFKA_PARTITIONS=0"]),
        (
            &[("SECKILL_REDIS_URL", "redis://127.0.0.1:1/0")],
            64,
            &["SECKILL_REDIS_URL", "SECKILL_KAFKA_BROKERS", "SECKILL_DATABASE_URL"],
        ),
        (&[("SECKILL_REDIS_URL_FILE", "/nowhere/secret")], 64, &["SECKILL_REDIS_URL_FILE=/nowhere/secret"]),
        (
            &[
                ("SECKILL_REDIS_URL", "http://x"),
                ("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"),
                ("SECKILL_DATABASE_URL", "mysql://x/y"),
            ],
            64,
            &["SECKILL_REDIS_URL", "redis://"],
        ),
        (&[("SECKILL_LISTEN", &taken)], 1, &["SECKILL_LISTEN", &taken]),
        (&[("SECKILL_OPS_LISTEN", &taken)], 1, &["SECKILL_OPS_LISTEN", &taken]),
        (&[("SECKILL_DATA", &foreign)], 64, &["SECKILL_DATA", "notes.txt"]),
        (&[("SECKILL_DATA", "/nowhere/sale.db")], 64, &["SECKILL_DATA", "/nowhere"]),
    ];
    for (settings, code, parts) in cases {
        let (ended, said) = serve(settings);
        assert_eq!(ended, Some(code), "{settings:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{settings:?}: {said}");
        assert!(said.starts_with("error: "), "{said}");
        for part in parts {
            assert!(said.contains(part), "{settings:?}: {said}");
        }
    }
    let beside = std::fs::read_dir(std::path::Path::new(&foreign).parent().unwrap()).unwrap().count();
    assert_eq!(beside, 1, "nothing is put beside it");
    assert_eq!(
        std::fs::read_to_string(&foreign).unwrap(),
        "not a database",
        "a file that is not ours is left alone"
    );
}

#[test]
fn a_secret_never_shows() {
    let (_, said) = serve(&[
        ("SECKILL_REDIS_URL", "http://user:hush@x"),
        ("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"),
        ("SECKILL_DATABASE_URL", "mysql://x:hush@/y"),
    ]);
    assert!(!said.contains("hush"), "{said}");
}

/// A line of `.env` may contain a password, too; and an empty variable counts as unset.
#[test]
fn a_broken_env_file_and_empty_variables() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join(".env"), "SECKILL_REDIS_URL=redis://:hush hush@h\n").unwrap();
    let ended = output("seckill", &Vec::new(), &["status"], folder.path());
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(64));
    assert!(said.starts_with("error: .env: ") && !said.contains("hush"), "{said}");
    std::fs::write(folder.path().join(".env"), "SECKILL_STOCK=\nSECKILL_OPENS_AT=\nSECKILL_REDIS_URL=\n")
        .unwrap();
    let seeded = output("seckill", &Vec::new(), &["seed", "3", "--data", "sale.db"], folder.path());
    assert!(seeded.status.success(), "{}", String::from_utf8_lossy(&seeded.stderr));
}

#[test]
fn wrong_usage_and_help() {
    let folder = TempDir::new().unwrap();
    let wrong = output("seckill", &Vec::new(), &["--no-such-flag"], folder.path());
    assert_eq!(wrong.status.code(), Some(64));
    let help = output("seckill", &Vec::new(), &["--help"], folder.path());
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    for (name, _) in consumer::service::config::table() {
        assert!(help.contains(&name), "{name} in --help");
    }
}

/// The README's table and `.env.example` name every setting and no other.
#[test]
fn the_documents_list_every_setting() {
    for document in ["README.md", "README.zh-CN.md", ".env.example"] {
        let text = std::fs::read_to_string(format!("{}/{document}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        for (name, default) in consumer::service::config::table() {
            let line = text
                .lines()
                .find(|line| line.contains(&name))
                .unwrap_or_else(|| panic!("{name} in {document}"));
            let default = default.unwrap_or_default();
            assert!(line.contains(&default), "{document}: {name} has the default {default}: {line}");
        }
    }
}

/// A literal password: in `.env` a `$` is never expanded.
#[test]
fn an_env_file_is_taken_literally() {
    let folder = TempDir::new().unwrap();
    let servers = "SECKILL_KAFKA_BROKERS=127.0.0.1:1\nSECKILL_DATABASE_URL=mysql://u:p@127.0.0.1:1/d\n";
    for (line, says) in [
        ("SECKILL_KAFKA_TOPIC=a$HOME", "a$HOME: give"),
        ("SECKILL_KAFKA_TOPIC=\"a$HOME\"", "a$HOME: give"),
        ("SECKILL_KAFKA_TOPIC='a$HOME'", "a$HOME: give"),
        ("SECKILL_KAFKA_TOPIC=\"a\\$HOME\"", "a$HOME: give"),
        ("SECKILL_KAFKA_TOPIC='a\\$${HOME}'", "a\\$${HOME}: give"),
        ("SECKILL_KAFKA_TOPIC=a$$b${c}$", "a$$b${c}$: give"),
        ("export SECKILL_STOCK = 'many $' # of them", "SECKILL_STOCK=many $: give"),
        ("SECKILL_STOCK=a\\b", ".env: line 3 is not NAME=value"),
    ] {
        std::fs::write(folder.path().join(".env"), format!("{servers}{line}\n")).unwrap();
        let ended = output("seckill", &Vec::new(), &["status"], folder.path());
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(64), "{line}: {said}");
        assert!(said.contains(says), "{line}: {said}");
    }
}

/// Commands name their world; and no sale begins in a file that no one would look for.
#[test]
fn every_command_says_where() {
    let folder = TempDir::new().unwrap();
    let run = |args: &[&str]| {
        let ended = output("seckill", &Vec::new(), args, folder.path());
        (ended.status.code(), String::from_utf8(ended.stderr).unwrap())
    };
    let (code, said) = run(&["seed", "1000"]);
    assert_eq!(code, Some(64), "{said}");
    for way in ["--data FILE", "SECKILL_REDIS_URL", "start `seckill`"] {
        assert!(said.contains(way), "{said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is made");
    assert_eq!(run(&["seed", "5", "--data", "seckill.db"]).0, Some(0));
    let file = folder.path().canonicalize().unwrap().join("seckill.db").display().to_string();
    for args in [
        &["seed", "7"][..],
        &["seed", "--add", "2"],
        &["status"],
        &["audit", "--json"],
        &["restore"],
        &["archive"],
    ] {
        let (code, said) = run(args);
        assert!(code == Some(0) && said.contains(&file), "{args:?}: {said}");
    }
    let addresses: Env = [
        ("SECKILL_REDIS_URL", "redis://me:hush@127.0.0.1:1/3?protocol=resp3"),
        ("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"),
        ("SECKILL_DATABASE_URL", "mysql://me:hush@127.0.0.1:1/shop?ssl-mode=DISABLED"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let ended = output("seckill", &addresses, &["status"], folder.path());
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(
        said.contains(
            "Redis 127.0.0.1:1/3, Kafka 127.0.0.1:1 with topic CAR_NUMBER, database 127.0.0.1:1/shop"
        ),
        "{said}"
    );
    assert!(!said.contains("hush"), "{said}");
}

#[test]
fn too_few_open_files() {
    let folder = TempDir::new().unwrap();
    let plain = crate::process::command("seckill", &Vec::new(), &["serve"], folder.path());
    let few = std::process::Command::new("sh")
        .args(["-c", "ulimit -n 100; exec \"$0\" serve"])
        .arg(plain.get_program())
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8(few.stderr).unwrap();
    assert_eq!(few.status.code(), Some(1), "{said}");
    for part in ["100 open files", "ulimit -Hn", "LimitNOFILE="] {
        assert!(said.contains(part), "{said}");
    }
}
