//! Replies, one function a shape. RESP3 gets maps, doubles and booleans; RESP2 what the server makes of them.

use crate::server::api::{api, Context};
use feature_store_core::drift::finding::Told;
use feature_store_core::feature_type::FeatureType;
use feature_store_core::value::{format_f32, Value};
use feature_store_core::Error;
use std::ffi::{c_char, c_int, c_long};

/// Which protocol the caller speaks: it decides how numbers are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Resp2,
    Resp3,
}

impl Context<'_> {
    pub(crate) fn protocol(self) -> Protocol {
        if self.flags().is_resp3() {
            Protocol::Resp3
        } else {
            Protocol::Resp2
        }
    }

    pub(crate) fn reply_ok(self) {
        // SAFETY: the context can reply; the string ends in NUL.
        unsafe { api!(RedisModule_ReplyWithSimpleString(self.as_ptr(), c"OK".as_ptr())) };
    }

    pub(crate) fn reply_error(self, error: &Error) {
        // `shown` keeps values on one line; a NUL could only come from a defect, and would cut the message.
        let line: Vec<u8> = error.to_string().bytes().filter(|b| !matches!(b, 0 | b'\r' | b'\n')).chain([0]).collect();
        // SAFETY: the context can reply; the string ends in NUL.
        unsafe { api!(RedisModule_ReplyWithError(self.as_ptr(), line.as_ptr().cast::<c_char>())) };
    }

    pub(crate) fn reply_nil(self) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithNull(self.as_ptr())) };
    }

    pub(crate) fn reply_integer(self, value: i64) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithLongLong(self.as_ptr(), value)) };
    }

    /// A counter, or nil.
    pub(crate) fn reply_count(self, value: Option<u64>) {
        match value {
            Some(value) => self.reply_integer(i64::try_from(value).unwrap_or(i64::MAX)),
            None => self.reply_nil(),
        }
    }

    pub(crate) fn reply_optional_integer(self, value: Option<i64>) {
        match value {
            Some(value) => self.reply_integer(value),
            None => self.reply_nil(),
        }
    }

    pub(crate) fn reply_bool(self, value: bool) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithBool(self.as_ptr(), c_int::from(value))) };
    }

    pub(crate) fn reply_double(self, value: f64) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithDouble(self.as_ptr(), value)) };
    }

    pub(crate) fn reply_bytes(self, value: &[u8]) {
        // SAFETY: the context can reply; the server copies the bytes.
        unsafe { api!(RedisModule_ReplyWithStringBuffer(self.as_ptr(), value.as_ptr().cast::<c_char>(), value.len())) };
    }

    pub(crate) fn reply_text(self, value: &str) {
        self.reply_bytes(value.as_bytes());
    }

    /// Text, or nil.
    pub(crate) fn reply_optional_text(self, value: Option<&str>) {
        match value {
            Some(value) => self.reply_text(value),
            None => self.reply_nil(),
        }
    }

    /// An array; that many replies must follow.
    pub(crate) fn reply_array(self, length: usize) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithArray(self.as_ptr(), length as c_long)) };
    }

    /// A map; that many pairs of replies must follow.
    pub(crate) fn reply_map(self, length: usize) {
        // SAFETY: the context can reply.
        unsafe { api!(RedisModule_ReplyWithMap(self.as_ptr(), length as c_long)) };
    }

    /// A typed value; `protocol` is asked for once a command.
    pub(crate) fn reply_value(self, protocol: Protocol, value: Option<&Value<'_>>) {
        match value {
            None => self.reply_nil(),
            Some(Value::Int(v) | Value::Timestamp(v)) => self.reply_integer(*v),
            Some(Value::Bool(v)) => self.reply_bool(*v),
            Some(Value::String(v)) => self.reply_bytes(v),
            Some(Value::List(v)) => self.reply_text(v),
            Some(Value::Float(v)) => match protocol {
                Protocol::Resp3 => self.reply_double(*v),
                // A FLOAT comes in one piece.
                Protocol::Resp2 => Value::Float(*v).write_field(|text| self.reply_bytes(text)),
            },
            Some(Value::Vector(numbers)) => {
                self.reply_array(numbers.len());
                for number in numbers {
                    let text = format_f32(*number);
                    match (protocol, text.parse()) {
                        // The double whose shortest decimal is that of the float32: 0.1, not 0.10000000149011612.
                        (Protocol::Resp3, Ok(double)) => self.reply_double(double),
                        _ => self.reply_text(&text),
                    }
                }
            }
        }
    }

    /// A member of what is found of drift.
    pub(crate) fn reply_told(self, protocol: Protocol, told: &Told) {
        match (told, protocol) {
            (Told::Nil, _) => self.reply_nil(),
            (Told::Text(text), _) => self.reply_bytes(text),
            (Told::Number(number), Protocol::Resp3) => self.reply_double(*number),
            (Told::Number(_), Protocol::Resp2) => self.reply_bytes(&told.to_field()),
            (Told::Count(n), _) => self.reply_count(Some(*n)),
            (Told::Flag(flag), _) => self.reply_bool(*flag),
        }
    }

    /// A map of such members.
    pub(crate) fn reply_members(self, protocol: Protocol, members: &[(&str, Told)]) {
        self.reply_map(members.len());
        for (name, told) in members {
            self.reply_text(name);
            self.reply_told(protocol, told);
        }
    }

    /// A value that comes straight from a row. FLOAT and STRING need no detour over their value in RESP2.
    pub(crate) fn reply_stored(self, protocol: Protocol, ty: FeatureType, field: &[u8], value: &Value<'_>) {
        match (protocol, ty) {
            (Protocol::Resp2, FeatureType::Float) => self.reply_bytes(field),
            _ => self.reply_value(protocol, Some(value)),
        }
    }
}
