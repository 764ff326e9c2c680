//! The same over gRPC: keys, limits, clients that go away, and the server's end.
use std::{net::TcpStream, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use photon_server::Config;
use tonic::{
    Code, Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery,
    transport::Channel,
};
use tonic_prost::ProstCodec;

use self::proto::{
    ModelInferRequest, ModelInferResponse, ModelStreamInferResponse, ServerReadyRequest,
    ServerReadyResponse, model_infer_request::InferInputTensor,
};
use crate::client::{PICTURE, TestServer};

mod proto {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        dead_code,
        unreachable_pub,
        reason = "made from proto/inference.proto"
    )]
    tonic::include_proto!("inference");
}

fn config() -> Config {
    Config { grpc: Some(([127, 0, 0, 1], 0).into()), ..super::config() }
}

/// Runs a conversation with a server, which is as before afterwards.
fn converse(config: Config, talk: impl AsyncFnOnce(&TestServer, Client)) {
    super::survives(config, |server| {
        block_on(async { talk(server, Client::connect(server).await).await });
    });
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(future);
}

#[derive(Clone)]
struct Client(Grpc<Channel>);

impl Client {
    async fn connect(server: &TestServer) -> Self {
        let endpoint = Channel::from_shared(format!("http://{}", server.grpc())).unwrap();
        Client(Grpc::new(endpoint.connect().await.unwrap()))
    }

    async fn ready(&mut self) -> bool {
        self.0.ready().await.unwrap();
        let (path, codec) = (path("ServerReady"), ProstCodec::default());
        let request = Request::new(ServerReadyRequest {});
        let ready: ServerReadyResponse =
            self.0.unary(request, path, codec).await.unwrap().into_inner();
        ready.ready
    }

    async fn infer(
        &mut self,
        request: Request<ModelInferRequest>,
    ) -> Result<ModelInferResponse, Status> {
        self.0.ready().await.unwrap();
        let answer = self.0.unary(request, path("ModelInfer"), ProstCodec::default()).await?;
        Ok(answer.into_inner())
    }

    /// A stream on which the client says these and then nothing, without ending it.
    async fn stream(
        &mut self,
        requests: Vec<ModelInferRequest>,
    ) -> Result<Streaming<ModelStreamInferResponse>, Status> {
        self.0.ready().await.unwrap();
        let requests = Request::new(stream::iter(requests).chain(stream::pending()));
        let (path, codec) = (path("ModelStreamInfer"), ProstCodec::default());
        Ok(self.0.streaming(requests, path, codec).await?.into_inner())
    }
}

fn path(method: &str) -> PathAndQuery {
    format!("/inference.GRPCInferenceService/{method}").parse().unwrap()
}

/// A long caption of the sample picture.
fn caption(streams: bool) -> ModelInferRequest {
    let text = |text: &[u8]| [&(text.len() as u32).to_le_bytes()[..], text].concat();
    let tensors = [
        ("SKILL", "BYTES", text(b"caption")),
        ("LENGTH", "BYTES", text(b"long")),
        ("IMAGE", "BYTES", text(PICTURE)),
        ("STREAM", "BOOL", vec![u8::from(streams)]),
    ];
    let mut request =
        ModelInferRequest { model_name: "moondream".into(), ..ModelInferRequest::default() };
    for (name, datatype, bytes) in tensors {
        request.inputs.push(InferInputTensor {
            name: name.into(),
            datatype: datatype.into(),
            shape: vec![1],
            ..InferInputTensor::default()
        });
        request.raw_input_contents.push(Bytes::from(bytes));
    }
    request
}

#[test]
fn keys_are_asked_for_where_it_costs() {
    let server = TestServer::start(Config { api_keys: vec!["secret".into()], ..config() });
    block_on(async {
        let mut client = Client::connect(&server).await;
        assert!(client.ready().await);
        let refused = client.infer(Request::new(caption(false))).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let refused = client.stream(vec![caption(true)]).await.err().unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        let mut with_key = Request::new(caption(false));
        with_key.metadata_mut().insert("authorization", "Bearer secret".parse().unwrap());
        assert_eq!(client.infer(with_key).await.unwrap().model_version, "1");
    });
}

#[test]
fn messages_that_are_too_large_are_refused() {
    converse(config(), async |_, mut client| {
        let mut request = caption(false);
        request.raw_input_contents[2] = vec![0; 1 << 20].into();
        let refused = client.infer(Request::new(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        let mut request = caption(false);
        request.raw_input_contents[2] = [&[1, 0, 8, 0][..], &[0xff; (1 << 19) + 1]].concat().into();
        let refused = client.infer(Request::new(request)).await.unwrap_err();
        assert!(refused.message().contains("--max-image"), "{refused}");
    });
}

#[test]
fn clients_that_go_away_cancel_at_every_piece() {
    converse(config(), async |_, mut client| {
        for pieces in 0..8 {
            let mut answers = client.stream(vec![caption(true), caption(true)]).await.unwrap();
            for _ in 0..pieces {
                let piece = answers.message().await.unwrap().unwrap();
                assert_eq!(piece.error_message, "");
            }
        }
        // All of a connection at once.
        let asking: Vec<_> = (0..8)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.infer(Request::new(caption(false))).await })
            })
            .collect();
        tokio::task::yield_now().await;
        asking.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
fn streams_and_connections_that_say_nothing_are_ended() {
    let config = Config { idle_timeout: Duration::from_millis(300), ..config() };
    converse(config, async |server, mut client| {
        let mut answers = client.stream(vec![caption(true)]).await.unwrap();
        let mut last = None;
        while let Some(piece) = answers.message().await.unwrap() {
            last = piece.infer_response;
        }
        assert!(last.unwrap().parameters.contains_key("triton_final_response"));
        // One that never says that it speaks HTTP/2.
        let silent = TcpStream::connect(server.grpc()).unwrap();
        silent.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        std::io::copy(&mut &silent, &mut std::io::sink()).unwrap();
    });
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = TestServer::with_engine(config(), |builder| builder.max_seqs(1).max_waiting(2));
    block_on(async {
        let client = Client::connect(&server).await;
        let asking: Vec<_> = (0..24)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.infer(Request::new(caption(false))).await })
            })
            .collect();
        let (mut answered, mut busy) = (0, 0);
        for asked in asking {
            match asked.await.unwrap() {
                Ok(_) => answered += 1,
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");
                    busy += 1;
                }
            }
        }
        assert!(answered > 0 && busy > 0, "{answered} answered, {busy} busy");
    });
    server.expect_right_answer();
}

#[test]
fn a_server_that_is_told_to_stop_ends_what_is_under_way() {
    let server = TestServer::start(config());
    block_on(async {
        let mut client = Client::connect(&server).await;
        let mut answers = client.stream(vec![caption(true)]).await.unwrap();
        answers.message().await.unwrap().unwrap();
        server.handle().stop();
        let mut last = None;
        while let Some(piece) = answers.message().await.unwrap() {
            last = piece.infer_response;
        }
        let output = last.unwrap().raw_output_contents.concat();
        let output = String::from_utf8_lossy(&output[4..]).into_owned();
        assert!(output.contains("\"completed\":true") && output.contains("finish_reason"));
    });
    server.join();
}
