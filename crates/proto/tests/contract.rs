//! Rules of the contract, checked on the compiled descriptors.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};
use quorate_proto::{FILE_DESCRIPTOR_SET, FILE_DESCRIPTOR_SET_ALL};

fn ours(set: &[u8]) -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(set).unwrap();
    let of_us = |f: &FileDescriptorProto| f.package().starts_with("quorate.");
    set.file.into_iter().filter(of_us).collect()
}

#[test]
fn reflection_shows_only_the_client_api() {
    let client: BTreeSet<String> =
        ours(FILE_DESCRIPTOR_SET).iter().map(|f| f.package().to_owned()).collect();
    assert_eq!(client, BTreeSet::from(["quorate.v1".to_owned()]));
    let every = ours(FILE_DESCRIPTOR_SET_ALL);
    assert!(every.iter().any(|f| f.package() == "quorate.raft.v1"));
}

/// Messages, fields, enums, values, services and methods.
#[test]
fn every_declaration_has_a_comment() {
    let mut missing = Vec::new();
    for file in ours(FILE_DESCRIPTOR_SET_ALL) {
        let info = file.source_code_info.clone().unwrap();
        let commented: BTreeSet<Vec<i32>> = info
            .location
            .iter()
            .filter(|l| !l.leading_comments().trim().is_empty())
            .map(|l| l.path.clone())
            .collect();
        let mut need = |path: Vec<i32>, name: String| {
            if !commented.contains(&path) {
                missing.push(format!("{}: {name}", file.name()));
            }
        };
        for (i, message) in (0..).zip(&file.message_type) {
            message_paths(message, vec![4, i], &mut need);
        }
        for (i, one) in (0..).zip(&file.enum_type) {
            enum_paths(one, vec![5, i], &mut need);
        }
        for (i, service) in (0..).zip(&file.service) {
            need(vec![6, i], service.name().to_owned());
            for (k, method) in (0..).zip(&service.method) {
                need(vec![6, i, 2, k], method.name().to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "without a comment: {missing:#?}");
}

fn message_paths(
    message: &DescriptorProto,
    path: Vec<i32>,
    need: &mut impl FnMut(Vec<i32>, String),
) {
    if message.options.as_ref().is_some_and(|o| o.map_entry()) {
        return;
    }
    let at = |more: [i32; 2]| [path.as_slice(), &more].concat();
    for (i, field) in (0..).zip(&message.field) {
        need(at([2, i]), format!("{}.{}", message.name(), field.name()));
    }
    // The compiler wraps an optional field in a oneof of its own.
    let optional: BTreeSet<i32> =
        message.field.iter().filter(|f| f.proto3_optional()).map(|f| f.oneof_index()).collect();
    for (i, oneof) in (0..).zip(&message.oneof_decl) {
        if optional.contains(&i) {
            continue;
        }
        need(at([8, i]), format!("{}.{}", message.name(), oneof.name()));
    }
    for (i, nested) in (0..).zip(&message.nested_type) {
        message_paths(nested, at([3, i]), need);
    }
    for (i, nested) in (0..).zip(&message.enum_type) {
        enum_paths(nested, at([4, i]), need);
    }
    need(path, message.name().to_owned());
}

fn enum_paths(one: &EnumDescriptorProto, path: Vec<i32>, need: &mut impl FnMut(Vec<i32>, String)) {
    for (i, value) in (0..).zip(&one.value) {
        need([path.as_slice(), &[2, i]].concat(), value.name().to_owned());
    }
    need(path, one.name().to_owned());
}

/// Value names begin with their enum's name, and 0 is UNSPECIFIED.
#[test]
fn enum_values_are_named_after_their_enum() {
    for one in ours(FILE_DESCRIPTOR_SET_ALL).iter().flat_map(|f| &f.enum_type) {
        let mut prefix = String::new();
        for c in one.name().chars() {
            if c.is_uppercase() && !prefix.is_empty() {
                prefix.push('_');
            }
            prefix.push(c.to_ascii_uppercase());
        }
        assert_eq!(one.value[0].name(), format!("{prefix}_UNSPECIFIED"));
        assert_eq!(one.value[0].number(), 0);
        for value in &one.value {
            assert!(value.name().starts_with(&format!("{prefix}_")), "{}", value.name());
        }
    }
}

/// Each method has its own messages, named after it.
#[test]
fn every_method_has_its_own_messages() {
    let mut seen = BTreeSet::new();
    let files = ours(FILE_DESCRIPTOR_SET);
    for method in files.iter().flat_map(|f| &f.service).flat_map(|s| &s.method) {
        let request = format!(".quorate.v1.{}Request", method.name());
        let response = format!(".quorate.v1.{}Response", method.name());
        assert_eq!(method.input_type(), request);
        assert_eq!(method.output_type(), response);
        assert!(seen.insert(request) && seen.insert(response));
    }
    for service in ["Kv", "Cluster"] {
        let named = |s: &&ServiceDescriptorProto| s.name() == service;
        let found = files.iter().flat_map(|f| &f.service).find(named);
        assert!(found.is_some_and(|s| !s.method.is_empty()), "{service} has no methods");
    }
}

/// Otherwise a node that lacks a feature would carry the request out without it.
#[test]
fn every_request_can_require_features() {
    let files = ours(FILE_DESCRIPTOR_SET);
    let messages = || files.iter().flat_map(|file| &file.message_type);
    let requests: Vec<_> = messages().filter(|m| m.name().ends_with("Request")).collect();
    assert!(requests.len() >= 15, "{}", requests.len());
    for request in requests {
        let has = request.field.iter().any(|field| field.name() == "required_features");
        assert!(has, "{}", request.name());
    }
}

/// In `kv.proto` one meaning has one number, and the reserved numbers are unused.
#[test]
fn fields_of_one_meaning_have_one_number_in_kv() {
    let fixed: BTreeMap<&str, i32> = BTreeMap::from([
        ("keyspace", 10),
        ("route", 11),
        ("session", 12),
        ("replayed", 13),
        ("receipt", 14),
        ("receipts", 14),
        ("token", 15),
        ("required_features", 20),
    ]);
    let files = ours(FILE_DESCRIPTOR_SET);
    let kv = files.iter().find(|f| f.name().ends_with("/kv.proto")).unwrap();
    for message in &kv.message_type {
        for field in &message.field {
            let name = format!("{}.{}", message.name(), field.name());
            if let Some(number) = fixed.get(field.name()) {
                assert_eq!(field.number(), *number, "{name}");
            }
            // What is seldom sent may have two bytes.
            let common = field.name() != "required_features";
            assert!(
                field.number() <= 15 || !common,
                "{name}: fields of every call have numbers of one byte"
            );
        }
        let writes = message.field.iter().any(|f| f.name() == "session");
        if writes || message.name() == "BatchOperation" {
            let later =
                |r: &prost_types::descriptor_proto::ReservedRange| (r.start(), r.end()) == (16, 20);
            assert!(message.reserved_range.iter().any(later), "{}", message.name());
            let names = ["ttl", "lease_id", "fence", "transaction_id"];
            let kept = |name: &&str| message.reserved_name.iter().any(|kept| kept == name);
            assert!(names.iter().all(kept), "{}: {:?}", message.name(), message.reserved_name);
        }
    }
}
