# clipq without torch as a container, targets cpu, gpu and jetson: docker build --target cpu -t clipq:cpu . (docs/image.md)
# A site gives its own bases as build arguments and its package index as the secret pip.conf: neither stays in the image.
ARG BASE_CPU=python:3.11.14-slim-bookworm
ARG BASE_GPU=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
# L4T's release must be the board's, so there is no default that fits: give the whole name, registry included (this is JetPack 6.1's).
ARG BASE_JETSON=l4t-tensorrt:r10.3.0-runtime

# One wheel for all targets.
FROM ${BASE_CPU} AS wheel
WORKDIR /source
COPY constraints.txt ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --constraint constraints.txt hatchling==1.33.0
COPY pyproject.toml README.md LICENSE ./
COPY clipq clipq
RUN /opt/build/bin/hatchling build --target wheel --directory /wheel

# What clipq never opens goes: pip, tests, ONNX Runtime's library for C (Python has its own), the embedded models that need torch, the
# hub client that tokenizers asks for with all it needs, Pygments.
FROM ${BASE_CPU} AS cpu-build
COPY constraints.txt /
COPY --from=wheel /wheel /wheel
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv /opt/clipq \
    && /opt/clipq/bin/pip install --no-cache-dir --no-compile --constraint /constraints.txt \
      "$(echo /wheel/clipq-*.whl)[cpu]" jinja2 pyyaml \
    && /opt/clipq/bin/pip uninstall --yes anyio click filelock fsspec h11 hf-xet httpcore2 httpx2 huggingface_hub idna tqdm truststore \
      Pygments setuptools pip \
    && find /opt/clipq -type d -name tests -prune -exec rm -r {} + \
    && rm -rf /opt/clipq/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.* \
      /opt/clipq/lib/python3*/site-packages/clipq/engines/torch/demo \
    && install --directory --owner=10001 --group=10001 --mode=1777 /scratch

FROM ${BASE_CPU} AS cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clipq" \
      org.opencontainers.image.description="Tells whether a quantized CLIP may ship: verifies, evaluates and times a bundle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=cpu-build /opt/clipq /opt/clipq
COPY --from=cpu-build --chown=10001:10001 /scratch /scratch
ENV PATH=/opt/clipq/bin:${PATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 HOME=/scratch TMPDIR=/scratch
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10m --timeout=60s --start-period=60s CMD ["sh", "-c", "clipq doctor || exit 1"]
ENTRYPOINT ["clipq"]
CMD ["--help"]

# TensorRT comes from the apt repository that NVIDIA's base is set up with; TENSORRT= (empty) where the base has it already.
FROM ${BASE_GPU} AS gpu-base
ARG TENSORRT=10.14.1.48-1+cuda13.0
# hadolint ignore=DL3008
RUN if test -n "${TENSORRT}"; then \
      apt-get update \
      && apt-get install --yes --no-install-recommends python3 "libnvinfer10=${TENSORRT}" "libnvinfer-plugin10=${TENSORRT}" \
        "libnvonnxparsers10=${TENSORRT}" "python3-libnvinfer=${TENSORRT}" \
      && rm -rf /var/lib/apt/lists/*; \
    fi \
    && python3 -c "import importlib.util; assert importlib.util.find_spec('tensorrt'), \
'BASE_GPU has no TensorRT for its python3, and TENSORRT names none'"

FROM gpu-base AS gpu-build
# hadolint ignore=DL3008
RUN python3 -c "import ensurepip" \
    || { apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; }
COPY constraints.txt /
COPY --from=wheel /wheel /wheel
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv --system-site-packages /opt/clipq \
    && /opt/clipq/bin/pip install --no-cache-dir --no-compile --ignore-installed --constraint /constraints.txt \
      "$(echo /wheel/clipq-*.whl)[gpu,report]" cuda-python \
    && /opt/clipq/bin/pip uninstall --yes hf-xet huggingface_hub setuptools pip \
    && install --directory --owner=10001 --group=10001 --mode=1777 /scratch

FROM gpu-base AS gpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clipq" \
      org.opencontainers.image.description="Tells whether a quantized CLIP may ship: verifies, evaluates and times a bundle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=gpu-build /opt/clipq /opt/clipq
COPY --from=gpu-build --chown=10001:10001 /scratch /scratch
ENV PATH=/opt/clipq/bin:${PATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 HOME=/scratch TMPDIR=/scratch
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10m --timeout=60s --start-period=60s CMD ["sh", "-c", "clipq doctor || exit 1"]
ENTRYPOINT ["clipq"]
CMD ["--help"]

FROM ${BASE_JETSON} AS jetson-build
# hadolint ignore=DL3008
RUN python3 -c "import importlib.util; assert importlib.util.find_spec('tensorrt'), \
'BASE_JETSON has no TensorRT for its python3: give the L4T TensorRT image of the JetPack on the board'" \
    && { python3 -c "import ensurepip" \
      || { apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; }; }
COPY constraints.txt /
COPY --from=wheel /wheel /wheel
# cuda-python is of JetPack 6's CUDA; the pin in constraints.txt is for newer drivers than a board has.
ARG CUDA_PYTHON=12.6.2.post1
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    python3 -m venv --system-site-packages /opt/clipq \
    && /opt/clipq/bin/pip install --no-cache-dir --no-compile --ignore-installed --constraint /constraints.txt \
      "$(echo /wheel/clipq-*.whl)[cpu]" jinja2 pyyaml "cuda-python==${CUDA_PYTHON}" \
    && /opt/clipq/bin/pip uninstall --yes anyio click filelock fsspec h11 hf-xet httpcore2 httpx2 huggingface_hub idna tqdm truststore \
      Pygments setuptools pip \
    && find /opt/clipq -type d -name tests -prune -exec rm -r {} + \
    && rm -rf /opt/clipq/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.* \
      /opt/clipq/lib/python3*/site-packages/clipq/engines/torch/demo \
    && install --directory --owner=10001 --group=10001 --mode=1777 /scratch

FROM ${BASE_JETSON} AS jetson
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clipq" \
      org.opencontainers.image.description="Tells whether a quantized CLIP may ship: verifies, evaluates and times a bundle" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=jetson-build /opt/clipq /opt/clipq
COPY --from=jetson-build --chown=10001:10001 /scratch /scratch
ENV PATH=/opt/clipq/bin:${PATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 HOME=/scratch TMPDIR=/scratch
USER 10001:10001
WORKDIR /scratch
VOLUME ["/scratch"]
STOPSIGNAL SIGINT
HEALTHCHECK --interval=10m --timeout=60s --start-period=60s CMD ["sh", "-c", "clipq doctor || exit 1"]
ENTRYPOINT ["clipq"]
CMD ["--help"]
