# kdhub with all of its families, on the CPU: docker build -t kdhub . && docker run -v "$PWD:/work" kdhub distill --method leaf
FROM python:3.11-slim AS wheels
WORKDIR /kdhub
COPY . .
RUN for one in . plugins/*/; do pip wheel --no-cache-dir --no-deps -w /wheels "./$one" || exit 1; done

FROM python:3.11-slim
RUN --mount=type=bind,from=wheels,source=/wheels,target=/wheels \
    --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt --find-links /wheels 'kdhub[all]'
RUN useradd --create-home kdhub
USER kdhub
WORKDIR /work
ENV KDHUB_HOME=/home/kdhub/.kdhub
ENTRYPOINT ["kdhub"]
CMD ["--help"]
