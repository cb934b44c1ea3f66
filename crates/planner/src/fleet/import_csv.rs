//! A fleet from a CSV file: one row per VM, or per empty host.
//!
//! | column | meaning |
//! |---|---|
//! | `host` | the host's name; required |
//! | `rack`, `zone`, `fault_domain`, `work_s`, `cordoned`, `room`, `label:KEY` | of the host; given on its first row, empty or equal on later ones |
//! | `vm` | the VM's name; empty on the row of an empty host |
//! | `set`, `update_domain` | the VM's place; an empty domain gets the next one round-robin |
//! | `set_update_domains`, `set_recovery_s` | of the set; given on its first row, empty or equal on later ones |
//!
//! Windows and sequencing labels need the JSON form.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

use fermata_model::{HostName, SetName, UpdateDomain};

use super::{Fleet, FleetBuilder, HostSpec, ImportError, PlacedVm, SetSpec};

const COLUMNS: [&str; 12] = [
    "host",
    "rack",
    "zone",
    "fault_domain",
    "work_s",
    "cordoned",
    "room",
    "vm",
    "set",
    "update_domain",
    "set_update_domains",
    "set_recovery_s",
];

/// Columns by name.
struct Header {
    at: HashMap<String, usize>,
    labels: Vec<(String, usize)>,
}

/// One row with its place, so that every refusal can name it.
struct Row<'a> {
    header: &'a Header,
    record: &'a csv::StringRecord,
    line: u64,
}

impl Row<'_> {
    fn refuse(&self, field: &str, reason: impl Display) -> ImportError {
        ImportError { line: self.line, field: field.to_owned(), reason: reason.to_string() }
    }

    fn cell(&self, column: &str) -> Option<&str> {
        let index = *self.header.at.get(column)?;
        self.record.get(index).map(str::trim).filter(|text| !text.is_empty())
    }

    /// A cell whose own refusal text says what to do.
    fn parse<T: FromStr<Err: Display>>(&self, column: &str) -> Result<Option<T>, ImportError> {
        self.cell(column).map(|text| text.parse().map_err(|e: T::Err| self.refuse(column, e))).transpose()
    }

    /// A cell with a whole number, or one of a type made from it.
    fn number<T: TryFrom<u32, Error: Display>>(&self, column: &str) -> Result<Option<T>, ImportError> {
        let Some(text) = self.cell(column) else { return Ok(None) };
        let number: u32 = text
            .parse()
            .map_err(|_| self.refuse(column, format!("`{text}` is not a whole number; write digits only")))?;
        T::try_from(number).map(Some).map_err(|e| self.refuse(column, e))
    }

    fn flag(&self, column: &str) -> Result<Option<bool>, ImportError> {
        match self.cell(column) {
            None => Ok(None),
            Some("true" | "yes" | "1") => Ok(Some(true)),
            Some("false" | "no" | "0") => Ok(Some(false)),
            Some(other) => Err(self.refuse(column, format!("`{other}` is not yes or no; write true or false"))),
        }
    }

    fn host(&self, name: HostName) -> Result<HostSpec, ImportError> {
        let mut host = HostSpec::new(name);
        host.rack = self.cell("rack").map(str::to_owned);
        host.zone = self.cell("zone").map(str::to_owned);
        host.fault_domain = self.number("fault_domain")?;
        host.work_s = self.number("work_s")?.unwrap_or(HostSpec::DEFAULT_WORK_S);
        host.cordoned = self.flag("cordoned")?.unwrap_or(false);
        host.room = self.number("room")?;
        for (key, index) in &self.header.labels {
            if let Some(value) = self.record.get(*index).map(str::trim).filter(|v| !v.is_empty()) {
                host.labels.insert(key.clone(), value.to_owned());
            }
        }
        Ok(host)
    }

    fn set(&self, name: SetName) -> Result<SetSpec, ImportError> {
        let mut set = SetSpec::new(name);
        set.update_domains = self.number("set_update_domains")?.unwrap_or(SetSpec::DEFAULT_UPDATE_DOMAINS);
        set.recovery_s = self.number("set_recovery_s")?.unwrap_or(SetSpec::DEFAULT_RECOVERY_S);
        Ok(set)
    }

    /// Refuses a later row that says something else about a host or a set than the first did.
    fn same(&self, columns: &[&str], whose: &str, first: &HashMap<String, String>) -> Result<(), ImportError> {
        for column in columns {
            if let Some(now) = self.cell(column)
                && let before = first.get(*column).map_or("", String::as_str)
                && before != now
            {
                let reason = format!("`{whose}` has `{before}` on its first row and `{now}` here; make them equal");
                return Err(self.refuse(column, reason));
            }
        }
        Ok(())
    }

    fn cells(&self, columns: &[&str]) -> HashMap<String, String> {
        columns.iter().filter_map(|c| self.cell(c).map(|text| ((*c).to_owned(), text.to_owned()))).collect()
    }
}

/// Reads a fleet at `revision` from CSV with a header row; the columns are described in this module.
///
/// # Errors
/// [`ImportError`] with line, column, reason and way out; the first one found ends the import.
pub fn from_csv(text: &str, revision: u64) -> Result<Fleet, ImportError> {
    let mut reader =
        csv::ReaderBuilder::new().trim(csv::Trim::Headers).comment(Some(b'#')).from_reader(text.as_bytes());
    let header = header(reader.headers().map_err(|e| malformed(&e))?)?;
    let host_columns: Vec<&str> = COLUMNS[1..7].iter().copied().chain(header.labels_as_columns()).collect();
    let set_columns = &COLUMNS[10..];
    let mut builder = FleetBuilder::new(revision);
    let mut hosts: HashMap<HostName, HashMap<String, String>> = HashMap::new();
    let mut sets: HashMap<SetName, HashMap<String, String>> = HashMap::new();
    let mut record = csv::StringRecord::new();
    while reader.read_record(&mut record).map_err(|e| malformed(&e))? {
        let line = record.position().map_or(0, csv::Position::line);
        let row = Row { header: &header, record: &record, line };
        let host: HostName =
            row.parse("host")?.ok_or_else(|| row.refuse("host", "is empty; every row names its host"))?;
        if let Some(first) = hosts.get(&host) {
            row.same(&host_columns, host.as_str(), first)?;
        } else {
            builder.add_host(row.host(host.clone())?).map_err(|e| row.refuse("host", e))?;
            hosts.insert(host.clone(), row.cells(&host_columns));
        }
        let set: Option<SetName> = row.parse("set")?;
        let update_domain: Option<UpdateDomain> = row.number("update_domain")?;
        let Some(vm) = row.parse("vm")? else {
            if set.is_some() || update_domain.is_some() {
                return Err(row.refuse("vm", "is empty, but the row has a set; name the VM or empty the set's columns"));
            }
            continue;
        };
        if let Some(set) = &set {
            if let Some(first) = sets.get(set) {
                row.same(set_columns, set.as_str(), first)?;
            } else {
                builder.add_set(row.set(set.clone())?).map_err(|e| row.refuse("set_update_domains", e))?;
                sets.insert(set.clone(), row.cells(set_columns));
            }
        }
        builder.add_vm(PlacedVm { name: vm, host, set, update_domain }).map_err(|e| row.refuse("vm", e))?;
    }
    Ok(builder.build())
}

impl Header {
    fn labels_as_columns(&self) -> impl Iterator<Item = &str> {
        self.at.keys().map(String::as_str).filter(|column| column.starts_with("label:"))
    }
}

fn header(columns: &csv::StringRecord) -> Result<Header, ImportError> {
    let refuse = |field: &str, reason: String| ImportError { line: 1, field: field.to_owned(), reason };
    let mut header = Header { at: HashMap::new(), labels: Vec::new() };
    for (index, column) in columns.iter().enumerate() {
        if let Some(key) = column.strip_prefix("label:") {
            header.labels.push((key.to_owned(), index));
        } else if !COLUMNS.contains(&column) {
            let known = COLUMNS.join(", ");
            return Err(refuse(column, format!("is not a column of a fleet; use {known} or label:KEY")));
        }
        if header.at.insert(column.to_owned(), index).is_some() {
            return Err(refuse(column, "appears twice; remove one of the two".to_owned()));
        }
    }
    if !header.at.contains_key("host") {
        return Err(refuse("host", "is missing; the first row names the columns and `host` is required".to_owned()));
    }
    Ok(header)
}

fn malformed(error: &csv::Error) -> ImportError {
    let line = error.position().map_or(0, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("the row has {len} cells and the header {expected_len}; add or remove commas")
        }
        csv::ErrorKind::Utf8 { .. } => "is not UTF-8; save the file as UTF-8".to_owned(),
        _ => error.to_string(),
    };
    ImportError { line, field: "row".to_owned(), reason }
}
