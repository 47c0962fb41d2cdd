//! FS.SERVE, and how a service answers.

use super::get::reply_served;
use super::mget::check_values;
use super::tensor::checked_bytes;
use super::{FIRST, SERVICE};
use crate::server::api::Context;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use crate::server::logs::add;
use crate::server::rows::Rows;
use crate::server::serving::{check_permissions, planned, read, read_tensor, Subjects};
use crate::server::state::{PreparedService, PreparedView};
use feature_store_core::keys::checked_entity_id;
use feature_store_core::row::Status;
use feature_store_core::service::{write_json, Format, Role};
use feature_store_core::windows::state::ReadAt;
use feature_store_core::{Error, Result};

/// Reads a service's features of entities.
pub(super) struct Serve;

impl Command for Serve {
    const SPEC: Spec = Spec {
        name: c"FS.SERVE",
        summary: c"Reads the features of a service for entities of one kind.",
        complexity: c"O(N*F), N the number of entities, F the number of features.",
        since: FIRST,
        flags: c"readonly",
        categories: c"fs read slow",
        arity: -3,
        keys: Keys::None,
        arguments: &[SERVICE, Argument::text(c"id").multiple()],
        reply: "As the service's format says, a row for each id in their order. `MAP`: an array of maps from the \
                features' names as the service has them to values as `FS.GET` gives them. `ARRAY`: an array of arrays \
                of these values. `JSON`: the array of maps as one string. `TENSOR`: an array of the shape (an array of \
                N and K) and one string of N by K little-endian float32, ready for `numpy.frombuffer(reply[1], \
                '<f4').reshape(reply[0])`; what fills which column is as in `FS.TENSOR`, and `FS.SERVICE GET` names \
                the columns.",
        notes: "Where the service has `WITHSTATUS`, each value is `[value, status, age_ms]`; a tensor has a third \
                element instead, a bit for each number, the lowest of a byte first, set where the row's own value is \
                served and not a default or NaN: `numpy.unpackbits(numpy.frombuffer(reply[2], 'u1'), \
                bitorder='little', count=n*k).reshape(n, k)`.\n\nAn entity that the store does not know is a row of \
                defaults, else nil or NaN. All rows are of one moment. The keys of all rows that are read must be \
                allowed to the caller.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let service = service_of(call)?;
        if service.service.ranking.is_some() {
            return Err(Error::syntax(format!("service '{}' ranks: FS.RANK reads it", service.service.name)));
        }
        let ids = &call.arguments().rest()[1..];
        ids.iter().try_for_each(|id| checked_entity_id(id).map(|_| ()))?;
        answer(call.context, &service, &Subjects { context_id: None, ids })
    }
}

/// The service that a command names first.
pub(super) fn service_of(call: &Call<'_>) -> Result<std::rc::Rc<PreparedService>> {
    let name = call.arguments().next("service")?;
    planned(call.context, name)
}

/// Reads and replies.
pub(super) fn answer(context: Context<'_>, service: &PreparedService, subjects: &Subjects<'_>) -> Result<()> {
    check_permissions(context, service, subjects)?;
    let (name, width, count) = (&service.service.name, service.plan.width(), subjects.ids.len());
    let at = ReadAt::Clock(context.now_ms());
    if service.service.format == Format::Tensor {
        checked_bytes(width, count)?;
        let tensor = read_tensor(context, service, subjects, at.ms())?;
        context.reply_array(if tensor.present.is_some() { 3 } else { 2 });
        context.reply_array(2);
        context.reply_count(Some(count as u64));
        context.reply_count(Some(width as u64));
        context.reply_bytes(&tensor.bytes);
        if let Some(present) = &tensor.present {
            context.reply_bytes(present);
        }
        return Ok(());
    }
    check_values(width.saturating_mul(count), || format!("service '{name}'"))?;
    let parts = read(context, service, subjects, at)?;
    match service.service.format {
        Format::Json => context.reply_bytes(&as_json(service, &parts, count, at)),
        format => reply_rows(context, service, &parts, count, at, format),
    }
    parts.iter().for_each(|rows| rows.note_served(context));
    Ok(())
}

fn reply_rows(
    context: Context<'_>,
    service: &PreparedService,
    parts: &[Rows<'_>],
    count: usize,
    at: ReadAt,
    format: Format,
) {
    let protocol = context.protocol();
    let names: Vec<String> = service.service.references.iter().map(ToString::to_string).collect();
    context.reply_array(count);
    for row in 0..count {
        match format {
            Format::Map => context.reply_map(names.len()),
            _ => context.reply_array(names.len()),
        }
        for (name, (part, place)) in names.iter().zip(&service.plan.sources) {
            if format == Format::Map {
                context.reply_text(name);
            }
            if service.service.with_status {
                context.reply_array(3);
            }
            let (rows, view, planned) = (&parts[*part], &service.views[*part], &service.plan.parts[*part]);
            let own_row = Subjects::row_of(planned.role, row);
            let served = rows.serve(own_row, *place);
            let feature = &view.view.features()[planned.features[*place]];
            reply_served(context, protocol, feature, rows.stored(own_row, *place), &served);
            note_invalid(view, planned.role, row, served.status);
            if service.service.with_status {
                context.reply_text(served.status.as_str());
                context.reply_optional_integer(served.age_ms(at.ms()));
            }
        }
    }
}

/// Counts a value that another writer left unreadable; once, although the context stands in each row of the answer.
fn note_invalid(view: &PreparedView, role: Role, row: usize, status: Status) {
    if status == Status::Invalid && (role != Role::Context || row == 0) {
        add(&view.log.counters.invalid_values, 1);
    }
}

fn as_json(service: &PreparedService, parts: &[Rows<'_>], count: usize, at: ReadAt) -> Vec<u8> {
    // Names are words with `@` and `:`, which need no escapes.
    let names: Vec<String> = service.service.references.iter().map(|r| format!("\"{r}\":")).collect();
    let mut json = vec![b'['];
    for row in 0..count {
        json.extend_from_slice(if row == 0 { b"{" } else { b",{" });
        for (i, (name, (part, place))) in names.iter().zip(&service.plan.sources).enumerate() {
            if i > 0 {
                json.push(b',');
            }
            json.extend_from_slice(name.as_bytes());
            let (rows, view, planned) = (&parts[*part], &service.views[*part], &service.plan.parts[*part]);
            let served = rows.serve(Subjects::row_of(planned.role, row), *place);
            note_invalid(view, planned.role, row, served.status);
            let feature = &view.view.features()[planned.features[*place]];
            if !service.service.with_status {
                write_json(feature, served.value.as_ref(), &mut json);
                continue;
            }
            json.push(b'[');
            write_json(feature, served.value.as_ref(), &mut json);
            let age = served.age_ms(at.ms()).map_or_else(|| "null".to_owned(), |age| age.to_string());
            json.extend_from_slice(format!(",\"{}\",{age}]", served.status.as_str()).as_bytes());
        }
        json.push(b'}');
    }
    json.push(b']');
    json
}
