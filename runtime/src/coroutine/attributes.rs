//! The attributes with which a coroutine is created.

use std::borrow::Cow;
use std::panic::Location;

#[derive(Clone, Debug)]
pub(crate) struct Attributes {
    pub(crate) name: Option<Cow<'static, str>>,
    pub(crate) stack_size: Option<usize>,
    pub(crate) track_stack_usage: Option<bool>,
    pub(crate) created_at: &'static Location<'static>,
}

impl Attributes {
    #[track_caller]
    #[inline]
    pub(crate) fn new() -> Attributes {
        Attributes { name: None, stack_size: None, track_stack_usage: None, created_at: Location::caller() }
    }
}
