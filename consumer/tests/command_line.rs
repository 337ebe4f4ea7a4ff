//! The program as a person starts it: settings, exit codes, one line.

mod support;

use std::process::{Command, Output};

fn consumer(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().expect("a folder without .env");
    let mut command = Command::new(env!("CARGO_BIN_EXE_consumer"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SECKILL_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(variables.iter().copied()).env_remove("RUST_LOG").current_dir(folder.path());
    command.output().expect("started")
}

fn mistake(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = consumer(arguments, variables);
    assert_eq!(output.status.code(), Some(64), "{arguments:?} {variables:?} {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr).expect("utf-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

#[test]
fn a_bad_value_is_one_line_that_names_the_variable() {
    assert_eq!(
        mistake(&[], &[("SECKILL_STOCK", "-3")]),
        "error: SECKILL_STOCK=-3: give a whole number from 0 to 1000000000000, such as 1000"
    );
    assert_eq!(
        mistake(&["--stock", "many"], &[]),
        "error: --stock=many: give a whole number from 0 to 1000000000000, such as 1000"
    );
    assert_eq!(
        mistake(&["migrate"], &[("SECKILL_STOCK", "-3")]),
        "error: SECKILL_STOCK=-3: give a whole number from 0 to 1000000000000, such as 1000"
    );
    for (variable, value) in [
        ("SECKILL_LISTEN", "here"),
        ("SECKILL_KAFKA_PARTITIONS", "0"),
        ("SECKILL_KAFKA_REPLICATION", "x"),
        ("SECKILL_KAFKA_TOPIC", "a b"),
        ("SECKILL_OPENS_AT", "soon"),
        ("SECKILL_CLOSES_AT", "+5"),
    ] {
        let line = mistake(&[], &[(variable, value)]);
        assert!(line.starts_with(&format!("error: {variable}={value}: ")), "{line}");
    }
}

#[test]
fn wrong_usage_is_one_line() {
    for arguments in
        [&["--nonsense"][..], &["nonsense"], &["migrate", "--nonsense"], &["migrate", "more"], &["--stock"]]
    {
        let line = mistake(arguments, &[]);
        assert!(line.starts_with("error: "), "{line}");
    }
}

#[test]
fn a_missing_address_is_named() {
    assert!(mistake(&[], &[]).contains("SECKILL_KAFKA_BROKERS"));
    assert!(mistake(&[], &[("SECKILL_KAFKA_BROKERS", "127.0.0.1:1")]).contains("SECKILL_DATABASE_URL"));
    assert!(mistake(&["migrate"], &[]).contains("SECKILL_DATABASE_URL"));
}

#[test]
fn secrets_are_not_repeated() {
    let addresses =
        [("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"), ("SECKILL_DATABASE_URL", "mysql://u:p@127.0.0.1:1/d")];
    for options in ["hunter2", "no.such.option=hunter2", "security.protocol=hunter2", "=hunter2"] {
        let line = mistake(&[], &[&addresses[..], &[("SECKILL_KAFKA_OPTIONS", options)]].concat());
        assert!(line.contains("SECKILL_KAFKA_OPTIONS") && !line.contains("hunter2"), "{line}");
    }
    let mut not_built_in = vec![("compression.type=zstd", "zstd is not built in")];
    if !cfg!(feature = "tls") {
        not_built_in.push(("security.protocol=ssl", "--features tls"));
    }
    for (options, says) in not_built_in {
        let line = mistake(&[], &[&addresses[..], &[("SECKILL_KAFKA_OPTIONS", options)]].concat());
        assert!(line.contains(says), "{line}");
    }
    let line = mistake(&["migrate"], &[("SECKILL_DATABASE_URL", "hunter2")]);
    assert!(line.contains("SECKILL_DATABASE_URL") && !line.contains("hunter2"), "{line}");
}

#[test]
fn help_names_every_variable() {
    let output = consumer(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).expect("utf-8");
    for (name, _) in consumer::service::config::SECRETS {
        assert!(text.contains(name), "{name}\n{text}");
    }
    assert!(text.contains("SECKILL_CONSUMER_OPS_LISTEN") && text.contains("migrate"), "{text}");
}

#[test]
fn a_secret_may_come_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("url");
    std::fs::write(&file, "hunter2\n").expect("written");
    let file = file.to_string_lossy();
    assert!(mistake(&["migrate"], &[("SECKILL_DATABASE_URL_FILE", &file)]).contains("give an address"));
    assert!(
        mistake(&["migrate"], &[("SECKILL_DATABASE_URL_FILE", "/none")])
            .contains("SECKILL_DATABASE_URL_FILE=/none")
    );
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let output = consumer(
        &[],
        &[
            ("SECKILL_CONSUMER_OPS_LISTEN", &address),
            ("SECKILL_KAFKA_BROKERS", "127.0.0.1:1"),
            ("SECKILL_DATABASE_URL", "mysql://u:p@127.0.0.1:1/d"),
        ],
    );
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).expect("utf-8");
    assert!(text.starts_with(&format!("error: SECKILL_CONSUMER_OPS_LISTEN={address}: ")), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn migrate_fails_at_once_when_the_database_is_away() {
    let output = consumer(&["migrate"], &[("SECKILL_DATABASE_URL", "mysql://u:hunter2@127.0.0.1:1/d")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).expect("utf-8");
    assert!(text.starts_with("error: the ledger is away: ") && !text.contains("hunter2"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
