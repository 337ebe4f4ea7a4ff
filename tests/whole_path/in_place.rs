//! The embedded file is deleted, replaced or moved while in use: no success is confirmed that the next start
//! would not know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::buyers::{Answer, buy, client, told};
use crate::process::until;
use crate::world::{Embedded, Node, get};

const SOON: Duration = Duration::from_secs(10);

fn data(world: &Embedded) -> PathBuf {
    world.folder.path().join("sale.db")
}

fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Sells three units to named buyers before the file is tampered with, and a fourth after: all confirmed
/// answers.
async fn sold(node: &Node) -> Vec<Answer> {
    let mut answers = Vec::new();
    for name in ["one", "two", "three"] {
        answers.push(buy(&client(), &node.buy_url(), Some(name)).await);
        assert_eq!(answers.last().unwrap().code, "success");
    }
    answers
}

/// Nothing is sold, no answer says "sold out", and log and ops name the file and the remedy.
async fn refuses(node: &Node, what: &str) -> String {
    // Not even the first request after it, however soon.
    for name in [Some("four"), Some("one"), None] {
        let refused = buy(&client(), &node.buy_url(), name).await;
        assert!(refused.code == "unavailable" || refused.code == "pending", "{what}: {}", refused.code);
    }
    node.reaches("unavailable", SOON).await;
    assert_eq!(buy(&client(), &node.buy_url(), Some("four")).await.code, "unavailable");
    let ready = client().get(format!("{}/readyz", node.ops)).send().await.unwrap();
    assert_eq!(ready.status().as_u16(), 503);
    let why = ready.text().await.unwrap();
    assert!(why.contains("sale.db") && why.contains(what), "{why}");
    assert!(node.process.log().contains(what), "{}", node.process.log());
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_saved_as_the_program_says() {
    let world = Embedded::new(9);
    let node = world.node(&[]).await;
    let answers = sold(&node).await;
    let file = data(&world);
    std::fs::remove_file(&file).unwrap();
    let why = refuses(&node, "was deleted or moved").await;
    // Exactly what the program advises.
    let copy =
        why.split('`').nth(1).unwrap().replace("SAVED.db", &beside(&file, ".saved").display().to_string());
    let words: Vec<&str> = copy.split(' ').collect();
    let copied = std::process::Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(copied.success(), "{copy}");
    let env = node.env();
    node.process.kill();
    std::fs::rename(beside(&file, ".saved"), &file).unwrap();
    let node = Node::again(env, world.folder.path());
    node.reaches("open", SOON).await;
    assert_eq!(node.count("").await["num"], 6);
    assert_eq!(buy(&client(), &node.buy_url(), Some("two")).await.order, answers[1].order);
    world.balance(&told(&answers), 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_by_a_copy_and_by_another_file() {
    let world = Embedded::new(9);
    let node = world.node(&[]).await;
    let answers = sold(&node).await;
    let file = data(&world);
    let (aside, copy) = (beside(&file, ".aside"), beside(&file, ".copy"));
    std::fs::copy(&file, &copy).unwrap();
    for other in [&copy, &world.folder.path().join("notes")] {
        if !other.exists() {
            std::fs::write(other, "not a database").unwrap();
        }
        std::fs::hard_link(&file, &aside).unwrap();
        std::fs::rename(other, &file).unwrap();
        refuses(&node, "another file was put where").await;
        // Back in its place, the sale continues.
        std::fs::rename(&aside, &file).unwrap();
        node.reaches("open", SOON).await;
    }
    let last = buy(&client(), &node.buy_url(), Some("last")).await;
    assert_eq!(last.code, "success");
    world.balance(&told(&[answers, vec![last]].concat()), 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_folder_moved_away_and_back() {
    let mut world = Embedded::new(9);
    let folder = world.folder.path().join("here");
    let away = world.folder.path().join("away");
    std::fs::create_dir(&folder).unwrap();
    let inside = folder.join("sale.db").display().to_string();
    world.env.retain(|(name, _)| name != "SECKILL_DATA");
    world.env.push(("SECKILL_DATA".into(), inside));
    let node = world.node(&[]).await;
    let answers = sold(&node).await;
    std::fs::rename(&folder, &away).unwrap();
    refuses(&node, "was deleted or moved").await;
    std::fs::rename(&away, &folder).unwrap();
    node.reaches("open", SOON).await;
    let last = buy(&client(), &node.buy_url(), Some("last")).await;
    assert_eq!(last.code, "success");
    until("it is recorded", SOON, async || {
        let order = last.order.clone().unwrap();
        get(&format!("{}/seckill/orders/{order}", node.url)).await.1["status"] == "recorded"
    })
    .await;
    assert!(node.process.stop().await.success());
    for name in ["sale.db", "sale.db-wal", "sale.db-shm"] {
        // Where the check of the books looks for them.
        let _ = std::fs::rename(folder.join(name), world.folder.path().join(name));
    }
    world.env.retain(|(name, _)| name != "SECKILL_DATA");
    world.env.push(("SECKILL_DATA".into(), data(&world).display().to_string()));
    world.balance(&told(&[answers, vec![last]].concat()), 4).await;
}

/// SQLite's companion files: one of them holds the last commits.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_last_is_deleted() {
    for end in ["-wal", "-shm"] {
        let world = Embedded::new(9);
        let node = world.node(&[]).await;
        let answers = sold(&node).await;
        std::fs::remove_file(beside(&data(&world), end)).unwrap();
        let why = refuses(&node, "was deleted or moved").await;
        assert!(why.contains("start the program again"), "{why}");
        let env = node.env();
        node.process.kill();
        let node = Node::again(env, world.folder.path());
        node.reaches("open", SOON).await;
        assert_eq!(node.count("").await["num"], 6);
        world.balance(&told(&answers), 3).await;
    }
}
