//! Classification of MySQL and MariaDB errors: transient or permanent, and the remedy.

use sqlx::migrate::MigrateError;
use sqlx::mysql::MySqlDatabaseError;

use super::failed;
use crate::ledger::LedgerError;
use crate::ledger::statements::Failure;

pub(super) fn not_migrated(error: MigrateError) -> LedgerError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => match number(&error) {
            Some(number) if DENIED.contains(&number) => LedgerError::Broken(format!(
                "this user may not make the tables; run `consumer migrate` once as one who may: {error}"
            )),
            _ => failed(error),
        },
        other => LedgerError::Broken(other.to_string()),
    }
}

/// `ER_NO_SUCH_TABLE`
pub(super) const NO_SUCH_TABLE: u16 = 1146;

/// Access denied to a database, a table, a column, or for lack of a privilege.
const DENIED: [u16; 4] = [1044, 1142, 1143, 1227];

/// Errors that retrying does not fix once there is a connection: an operator must change the tables, the
/// rights or the server, and restart. Any other error is transient, unknown ones included: the journal keeps
/// the sales.
const FOR_GOOD: [u16; 31] = [
    // A right is missing, also to a function.
    1044, 1142, 1143, 1227, 1370, //
    // A column, a table or a function is missing; the table's name is another object's, or a view's.
    1054, 1109, 1146, 1305, 1288, 1347, 1348, 1356, 1471, //
    // A foreign column has no default, computes one of ours, or references another table.
    1364, 1906, 3105, 1216, 1452, //
    // A statement, a key, a row, an engine, a character set unknown to this server.
    1060, 1061, 1064, 1071, 1115, 1118, 1128, 1149, 1235, 1273, 1286, //
    // Another engine than the transaction needs.
    1785,
];

/// Value errors: truncated, malformed, null, or violating a check. Others have a SQLSTATE of class 22, data
/// exception.
const VALUE: [u16; 6] = [1048, 1265, 1300, 1366, 3819, 4025];

/// Remedies for errors whose message does not name one.
const REMEDIES: [(u16, &str); 7] = [
    (1044, "make the database, and grant this user all rights on it"),
    (1045, "after a change of the password start again with the new one"),
    (1698, "after a change of the password start again with the new one"),
    (1049, "make it with `create database`, or name another in SECKILL_DATABASE_URL"),
    (1153, "set max_allowed_packet to 1M or more"),
    (1461, "raise max_prepared_stmt_count"),
    (1665, "set binlog_format to ROW or MIXED"),
];

pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    let database = error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(database.number())
}

/// The server's message, with the remedy.
pub(super) fn words(error: &sqlx::Error) -> String {
    let remedy = REMEDIES.iter().find(|(known, _)| number(error) == Some(*known));
    remedy.map_or_else(|| error.to_string(), |(_, remedy)| format!("{error}; {remedy}"))
}

pub(super) fn failure(error: &sqlx::Error) -> Failure {
    let Some(database) = error.as_database_error() else {
        return match error {
            // The result does not match the query.
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. } => Failure::Broken,
            _ => Failure::Away,
        };
    };
    if database.is_unique_violation() {
        return Failure::Taken;
    }
    let number = number(error).unwrap_or_default();
    let data_exception = database.code().is_some_and(|state| state.starts_with("22"));
    if FOR_GOOD.contains(&number) {
        Failure::Broken
    } else if data_exception || VALUE.contains(&number) {
        Failure::Refused
    } else {
        Failure::Away
    }
}
